package org.fedspzo.app;

import java.nio.ByteBuffer;

/** Direct buffers over numpy's memory, so that ExecuTorch takes it where it lies. Called from Python alone. */
public final class Buffers {
    static {
        System.loadLibrary("buffers");
    }

    private Buffers() {}

    /** A buffer over memory that the caller keeps alive for as long as the buffer is used. */
    public static native ByteBuffer over(long address, long bytes);
}
