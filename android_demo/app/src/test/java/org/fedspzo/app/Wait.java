package org.fedspzo.app;

import static org.junit.Assert.fail;

import org.robolectric.shadows.ShadowLooper;

import java.time.Duration;
import java.util.concurrent.Callable;
import java.util.concurrent.TimeUnit;

/** Waits for the app's threads, while the main thread's messages go on. */
final class Wait {
    /** As tests/support/patience.py: only a hang takes that long. */
    private static final Duration PATIENCE =
            Duration.ofSeconds(Integer.parseInt(System.getenv().getOrDefault("TEST_PATIENCE_S", "600")));
    private static final long STEP_MS = 20;

    private Wait() {}

    static void until(String what, Callable<Boolean> condition) throws Exception {
        long end = System.nanoTime() + PATIENCE.toNanos();
        while (!condition.call()) {
            if (System.nanoTime() > end) {
                fail("not within " + PATIENCE.getSeconds() + " s: " + what);
            }
            Thread.sleep(STEP_MS);
            ShadowLooper.idleMainLooper(STEP_MS, TimeUnit.MILLISECONDS);
        }
    }
}
