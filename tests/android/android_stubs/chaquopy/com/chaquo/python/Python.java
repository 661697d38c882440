package com.chaquo.python;

public class Python {
    public static class Platform {}

    public static native Python getInstance();

    public static native void start(Platform platform);

    public static native boolean isStarted();

    public native PyObject getModule(String name);
}
