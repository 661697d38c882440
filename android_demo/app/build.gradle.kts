plugins {
    id("com.android.application")
    id("com.chaquo.python")
}

val litertVersion: String by project
val executorchVersion: String by project

android {
    namespace = "org.fedspzo.app"
    compileSdk = 35
    ndkVersion = "27.2.12479018"

    defaultConfig {
        applicationId = "org.fedspzo.app"
        minSdk = 26
        targetSdk = 34
        versionCode = 2
        versionName = "0.2.0"
        ndk {
            // Python 3.13 and LiteRT are there for 64 bits alone.
            abiFilters += listOf("arm64-v8a", "x86_64")
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

    buildTypes {
        release {
            isMinifyEnabled = false // Python finds Java's classes by their names
        }
    }
}

dependencies {
    implementation("com.google.ai.edge.litert:litert:$litertVersion")
    // The optional engine for bundles with ExecuTorch's graphs alone: ./gradlew -Pexecutorch assembleDebug
    if (project.hasProperty("executorch")) {
        implementation("org.pytorch:executorch-android:$executorchVersion")
    }
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
