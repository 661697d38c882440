package org.fedspzo.app;

import android.app.Notification;
import android.app.NotificationManager;
import android.app.PendingIntent;
import android.app.Service;
import android.content.Context;
import android.content.Intent;
import android.os.IBinder;
import android.os.PowerManager;

import org.json.JSONArray;
import org.json.JSONObject;

/** Trains in the foreground, with a notification, from Start to Pause. */
public final class TrainingService extends Service implements Host.Holder {
    private static final String CHANNEL = "training";
    private static final int NOTIFICATION = 1;

    private PowerManager.WakeLock awake;

    /** To be called while the app is on the screen, as Android asks. */
    static void start(Context context) {
        Later.startForegroundService(context, new Intent(context, TrainingService.class));
    }

    static void stop(Context context) {
        context.stopService(new Intent(context, TrainingService.class));
    }

    @Override
    public void onCreate() {
        Later.createChannel(this, CHANNEL, getString(R.string.channel));
        PowerManager power = (PowerManager) getSystemService(POWER_SERVICE);
        awake = power.newWakeLock(PowerManager.PARTIAL_WAKE_LOCK, "fedspzo:training");
        awake.acquire();
    }

    @Override
    public int onStartCommand(Intent intent, int flags, int startId) {
        Later.startForeground(this, NOTIFICATION, notification(getString(R.string.notification_waiting)));
        Host.of(this).hold(this, answer -> {
            if (answer.has("error")) {
                stopSelf();
            }
        });
        return START_NOT_STICKY; // Android starts no such service from the background; the job goes on when it may
    }

    @Override
    public void changed(JSONObject status) {
        if (!status.optBoolean("running")) {
            stopSelf();
            return;
        }
        JSONArray losses = status.optJSONArray("losses");
        JSONArray last = losses == null ? null : losses.optJSONArray(losses.length() - 1);
        if (last != null) {
            String text = getString(R.string.notification_round, last.optInt(0), Text.decimal(last.optDouble(1), 3));
            NotificationManager manager = (NotificationManager) getSystemService(NOTIFICATION_SERVICE);
            manager.notify(NOTIFICATION, notification(text));
        }
    }

    /** Android 15 gives such services six hours a day. No @Override: the method is younger than what this is checked with. */
    public void onTimeout(int startId, int type) {
        stopSelf();
    }

    @Override
    public void onDestroy() {
        Host.of(this).release(this);
        awake.release();
    }

    @Override
    public IBinder onBind(Intent intent) {
        return null;
    }

    private Notification notification(String text) {
        Intent open = new Intent(this, MainActivity.class);
        return Later.notification(this, CHANNEL)
                .setSmallIcon(R.drawable.notification)
                .setContentTitle(getString(R.string.app_name))
                .setContentText(text)
                .setContentIntent(PendingIntent.getActivity(this, 0, open, PendingIntent.FLAG_IMMUTABLE))
                .setOngoing(true)
                .build();
    }
}
