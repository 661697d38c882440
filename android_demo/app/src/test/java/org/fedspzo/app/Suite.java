package org.fedspzo.app;

import org.junit.runner.Description;
import org.junit.runner.JUnitCore;
import org.junit.runner.Result;
import org.junit.runner.notification.Failure;
import org.junit.runner.notification.RunListener;

/** Where there is no Gradle: JUnit's own runner over the classes that are named, one line for each test. */
public final class Suite {
    private Suite() {}

    public static void main(String[] names) throws ClassNotFoundException {
        Class<?>[] tests = new Class<?>[names.length];
        for (int i = 0; i < names.length; i++) {
            tests[i] = Class.forName(names[i], false, Suite.class.getClassLoader()); // the sandbox initialises it
        }
        JUnitCore runner = new JUnitCore();
        runner.addListener(new Lines());
        Result result = runner.run(tests);
        System.out.printf("%d tests, %d failed, %d left out, in %.0f s%n", result.getRunCount(), result.getFailureCount(),
                result.getIgnoreCount(), result.getRunTime() / 1e3);
        System.exit(result.wasSuccessful() && result.getRunCount() > 0 ? 0 : 1); // threads of the app's may still wait
    }

    private static final class Lines extends RunListener {
        private long began;
        private Failure failure;

        @Override
        public void testStarted(Description test) {
            began = System.nanoTime();
            failure = null;
        }

        @Override
        public void testFailure(Failure found) {
            failure = found;
            if (!found.getDescription().isTest()) {
                testFinished(found.getDescription());
            }
        }

        @Override
        public void testFinished(Description test) {
            System.out.printf("%s %s.%s %.1f s%n", failure == null ? "passed" : "FAILED",
                    test.getTestClass() == null ? "" : test.getTestClass().getSimpleName(), test.getMethodName(),
                    (System.nanoTime() - began) / 1e9);
            if (failure != null) {
                failure.getTrace().lines().filter(Lines::tells).forEach(System.out::println);
            }
        }

        /** Whether a line of a trace is a message, or a place in the app or its tests. */
        private static boolean tells(String line) {
            return !line.matches("\\s+(at|\\.\\.\\.) .*") || line.contains("org.fedspzo") || line.contains("com.chaquo");
        }

        @Override
        public void testIgnored(Description test) {
            System.out.println("left out " + test.getDisplayName());
        }
    }
}
