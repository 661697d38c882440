package org.fedspzo.app;

import org.junit.runners.model.FrameworkMethod;
import org.junit.runners.model.InitializationError;
import org.robolectric.RobolectricTestRunner;
import org.robolectric.internal.bytecode.InstrumentationConfiguration;
import org.robolectric.internal.bytecode.Interceptor;
import org.robolectric.internal.bytecode.MethodRef;
import org.robolectric.internal.bytecode.MethodSignature;
import org.robolectric.util.Function;

import java.lang.invoke.MethodHandle;
import java.lang.invoke.MethodHandles;
import java.lang.invoke.MethodType;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collection;

/** Robolectric's, but Python's library is loaded once for the JVM. All tests use it: they then share one sandbox. */
public final class PhoneRunner extends RobolectricTestRunner {
    /** A property with the names of native libraries that the app shall lack. */
    static final String LACKING = "lacking";

    public PhoneRunner(Class<?> test) throws InitializationError {
        super(test);
    }

    @Override
    protected InstrumentationConfiguration createClassLoaderConfig(FrameworkMethod method) {
        return new InstrumentationConfiguration.Builder(super.createClassLoaderConfig(method))
                .doNotAcquirePackage("jep.")
                .build();
    }

    @Override
    protected Collection<Interceptor> findInterceptors() {
        Collection<Interceptor> all = new ArrayList<>(super.findInterceptors());
        all.add(new Libraries());
        return all;
    }

    /** In place of {@link System#loadLibrary}: Python finds the libraries by name, as on the phone, and others are not needed. */
    public static final class Libraries extends Interceptor {
        public Libraries() {
            super(new MethodRef(System.class, "loadLibrary"));
        }

        public static void load(String name) {
            if (Arrays.asList(System.getProperty(LACKING, "").split(" ")).contains(name)) {
                throw new UnsatisfiedLinkError("dlopen failed: library \"lib" + name + ".so\" not found");
            }
        }

        @Override
        public Function<Object, Object> handle(MethodSignature signature) {
            return (type, self, arguments) -> {
                load((String) arguments[0]);
                return null;
            };
        }

        @Override
        public MethodHandle getMethodHandle(String name, MethodType type) throws NoSuchMethodException, IllegalAccessException {
            return MethodHandles.lookup().findStatic(Libraries.class, "load", MethodType.methodType(void.class, String.class));
        }
    }
}
