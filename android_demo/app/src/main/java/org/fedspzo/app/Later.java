package org.fedspzo.app;

import android.app.Notification;
import android.app.NotificationChannel;
import android.app.NotificationManager;
import android.app.Service;
import android.content.Context;
import android.content.Intent;
import android.content.pm.ServiceInfo;
import android.os.Build;

/** All calls that came to Android after API 23: the checks compile this file alone against stubs of those. */
final class Later {
    private Later() {}

    static void createChannel(Context context, String id, CharSequence name) {
        NotificationChannel channel = new NotificationChannel(id, name, NotificationManager.IMPORTANCE_LOW);
        ((NotificationManager) context.getSystemService("notification")).createNotificationChannel(channel);
    }

    static Notification.Builder notification(Context context, String channel) {
        return new Notification.Builder(context, channel);
    }

    static void startForegroundService(Context context, Intent intent) {
        context.startForegroundService(intent);
    }

    static void startForeground(Service service, int id, Notification notification) {
        if (Build.VERSION.SDK_INT >= 29) {
            service.startForeground(id, notification, ServiceInfo.FOREGROUND_SERVICE_TYPE_DATA_SYNC);
        } else {
            service.startForeground(id, notification);
        }
    }
}
