package com.chaquo.python;

import jep.SharedInterpreter;

/** Chaquopy's class as far as the app uses it, for tests on a JVM: CPython in the same process, by jep. */
public final class Python {
    /** What Chaquopy is started with. */
    public static class Platform {}

    private static Python only;
    /** Jep's interpreters belong to a thread; all of them share modules and objects. */
    private static final ThreadLocal<SharedInterpreter> HERE = ThreadLocal.withInitial(Python::open);

    private Python() {}

    public static synchronized boolean isStarted() {
        return only != null;
    }

    public static synchronized void start(Platform platform) {
        only = new Python();
    }

    public static synchronized Python getInstance() {
        return only;
    }

    public PyObject getModule(String name) {
        return new PyObject(ask("module", name));
    }

    /** A function of chaquopy_by_jep.py; objects are numbers there. */
    static Object ask(String function, Object... arguments) {
        return HERE.get().invoke("chaquopy_by_jep." + function, arguments);
    }

    private static SharedInterpreter open() {
        SharedInterpreter python = new SharedInterpreter();
        python.set("loader", Python.class.getClassLoader());
        python.exec("import chaquopy_by_jep; chaquopy_by_jep.install(loader)");
        return python;
    }
}
