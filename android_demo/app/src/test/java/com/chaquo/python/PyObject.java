package com.chaquo.python;

/** An object of Python's, known by its number. */
public final class PyObject {
    private final Object number;

    PyObject(Object number) {
        this.number = number;
    }

    public PyObject callAttr(String name, Object... arguments) {
        Object[] all = new Object[2 + arguments.length];
        all[0] = number;
        all[1] = name;
        System.arraycopy(arguments, 0, all, 2, arguments.length);
        return new PyObject(Python.ask("call", all));
    }

    @Override
    public String toString() {
        return (String) Python.ask("text", number);
    }
}
