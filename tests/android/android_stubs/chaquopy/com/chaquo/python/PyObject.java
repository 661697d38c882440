package com.chaquo.python;

public class PyObject {
    public native PyObject callAttr(String key, Object... args);
}
