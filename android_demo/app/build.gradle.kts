plugins {
    id("com.android.application")
    id("com.chaquo.python")
}

val litertVersion: String by project
val executorchVersion: String by project

// Paths of the Python that tests run in their JVM, as tests/support/android_jep.py gives them; empty without `make test`.
val python = rootProject.file("../.venv/bin/python")
val embedded: Map<String, String> = if (!python.exists()) mapOf("JAR" to "jep.jar", "LD_LIBRARY_PATH" to "") else
    providers.exec { commandLine(python.path, rootProject.file("../tests/support/android_jep.py").path) }
        .standardOutput.asText.get().trim().lines().associate { it.substringBefore("=") to it.substringAfter("=") }

android {
    namespace = "org.fedspzo.app"
    compileSdk = 36
    ndkVersion = "27.2.12479018"

    defaultConfig {
        applicationId = "org.fedspzo.app"
        minSdk = 26
        targetSdk = 36
        versionCode = 3
        versionName = "0.3.0"
        ndk {
            // Python 3.13 and LiteRT are there for 64 bits alone. For phones alone: ./gradlew -Pabi=arm64-v8a assembleRelease
            abiFilters += (project.findProperty("abi") as String? ?: "arm64-v8a,x86_64").split(",")
        }
    }

    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_1_8
        targetCompatibility = JavaVersion.VERSION_1_8
    }

    externalNativeBuild {
        cmake {
            path = file("src/main/cpp/CMakeLists.txt")
        }
    }

    // The tests run the app's Python in their JVM: what it needs is in the virtual environment of the repository.
    testOptions {
        unitTests {
            isIncludeAndroidResources = true
            all { test ->
                test.maxHeapSize = "2g"
                test.environment("OMP_NUM_THREADS", "1")
                embedded.forEach { (name, value) -> test.environment(name, value) }
                test.systemProperty("java.library.path", embedded.getValue("LD_LIBRARY_PATH"))
                test.systemProperty("fedspzo.python", python.path)
                test.systemProperty("fedspzo.project", rootProject.file("..").path)
            }
        }
    }

    buildTypes {
        release {
            isMinifyEnabled = true
            proguardFiles(getDefaultProguardFile("proguard-android-optimize.txt"), "proguard-rules.pro")
            // The owner's key, where the environment names one; else the release is unsigned.
            System.getenv("FEDSPZO_KEYSTORE")?.let { keystore ->
                signingConfig = signingConfigs.create("owner") {
                    storeFile = file(keystore)
                    storePassword = System.getenv("FEDSPZO_KEYSTORE_PASSWORD")
                    keyAlias = System.getenv("FEDSPZO_KEY_ALIAS")
                    keyPassword = System.getenv("FEDSPZO_KEYSTORE_PASSWORD")
                }
            }
        }
    }
}

dependencies {
    implementation("com.google.android.material:material:1.12.0")
    implementation("androidx.appcompat:appcompat:1.6.1")
    implementation("com.google.ai.edge.litert:litert:$litertVersion")
    // The optional engine for bundles with ExecuTorch's graphs alone: ./gradlew -Pexecutorch assembleDebug
    if (project.hasProperty("executorch")) {
        implementation("org.pytorch:executorch-android:$executorchVersion")
    }
    testImplementation("junit:junit:4.13.2")
    testImplementation("org.robolectric:robolectric:4.16")
    testImplementation("androidx.test:core:1.7.0")
    testImplementation("androidx.test.ext:junit:1.3.0")
    testImplementation(files(embedded.getValue("JAR")))
}

// The runtime as it is in this repository, and nothing else of it.
val carryRuntime = tasks.register<Sync>("carryRuntime") {
    from(rootProject.file("../fedspzo/__init__.py")) {
        into("fedspzo")
    }
    from(rootProject.file("../device_runtime")) {
        include("**/*.py")
        into("fedspzo/device_runtime")
    }
    into(layout.buildDirectory.dir("runtime"))
}

tasks.matching { it.name.endsWith("PythonSources") }.configureEach {
    dependsOn(carryRuntime)
}

chaquopy {
    defaultConfig {
        version = "3.13"
        pip {
            install("-r", "../requirements.txt")
        }
    }
    sourceSets {
        getByName("main") {
            srcDir(layout.buildDirectory.dir("runtime"))
        }
    }
}
