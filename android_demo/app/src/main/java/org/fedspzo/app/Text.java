package org.fedspzo.app;

import java.util.Locale;

/** Numbers as people read them. */
final class Text {
    /** Between a number and its unit, where no line ends. */
    private static final String SPACE = "\u00a0";

    private Text() {}

    static String decimal(double number, int digits) {
        return String.format(Locale.getDefault(), "%." + digits + "f", number);
    }

    static String bytes(long count) {
        return count < 1000 ? count + SPACE + "B"
                : count < 1000000 ? decimal(count / 1e3, 1) + SPACE + "kB"
                : decimal(count / 1e6, 1) + SPACE + "MB";
    }
}
