package android.app;

import android.content.Context;

public abstract class Service extends Context {
    public final void startForeground(int id, Notification notification) {}

    public final void startForeground(int id, Notification notification, int foregroundServiceType) {}
}
