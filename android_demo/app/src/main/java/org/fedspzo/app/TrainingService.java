package org.fedspzo.app;

import android.app.Notification;
import android.app.NotificationChannel;
import android.app.NotificationManager;
import android.app.PendingIntent;
import android.app.Service;
import android.content.Context;
import android.content.Intent;
import android.content.pm.ServiceInfo;
import android.os.Build;
import android.os.IBinder;
import android.os.PowerManager;
import android.util.Log;

import org.json.JSONObject;

/** Trains in the foreground, with a notification, from Start to Pause. */
public final class TrainingService extends Service implements Host.Holder {
    static final String PAUSE = "org.fedspzo.app.PAUSE";
    private static final String CHANNEL = "training";
    private static final int NOTIFICATION = 1;
    /** For how long the processor is kept awake without news: while it starts, and while it works, for more than a round. */
    private static final long START_MS = 60 * 1000, WORK_MS = 15 * 60 * 1000;

    private PowerManager.WakeLock awake;
    /** What the notification says, as the page's first card does. */
    private String told = "";

    /** Whether it starts: since Android 12 it may not once the app has left the screen, and the job alone goes on. */
    static boolean start(Context context) {
        try {
            context.startForegroundService(new Intent(context, TrainingService.class));
            return true;
        } catch (IllegalStateException refused) {
            Log.w("fedspzo", "the service may not start now", refused);
            return false;
        }
    }

    static void stop(Context context) {
        context.stopService(new Intent(context, TrainingService.class));
    }

    @Override
    public void onCreate() {
        NotificationManager manager = getSystemService(NotificationManager.class);
        manager.createNotificationChannel(
                new NotificationChannel(CHANNEL, getString(R.string.channel), NotificationManager.IMPORTANCE_LOW));
        awake = getSystemService(PowerManager.class)
                .newWakeLock(PowerManager.PARTIAL_WAKE_LOCK, "fedspzo:training");
        awake.setReferenceCounted(false);
    }

    @Override
    public int onStartCommand(Intent intent, int flags, int startId) {
        if (intent != null && PAUSE.equals(intent.getAction())) {
            TrainingJob.cancel(this);
            Host.of(this).command(answer -> stopSelf(), "pause");
        } else if (toForeground()) {
            awake.acquire(START_MS);
            Host.of(this).hold(this, answer -> {
                if (answer.has("error")) {
                    stopSelf();
                }
            });
        } else {
            stopSelf();
        }
        return START_NOT_STICKY; // Android starts no such service from the background; the job goes on when it may
    }

    @Override
    public void changed(JSONObject status) {
        if (!status.optBoolean("running")) {
            stopSelf();
            return;
        }
        if (status.optBoolean("working")) {
            awake.acquire(WORK_MS);
        } else {
            awake.release();
        }
        String text = NowCard.title(Screen.of(status), getResources());
        if (!text.equals(told)) {
            told = text;
            getSystemService(NotificationManager.class).notify(NOTIFICATION, notification(text));
        }
    }

    /** Since Android 15 such services have six hours a day; after them the job goes on. */
    @Override
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

    /** Whether Android lets it: not from the background, nor when the day's hours are used up. */
    private boolean toForeground() {
        Notification shown = notification(getString(R.string.now_connecting));
        try {
            if (Build.VERSION.SDK_INT >= Build.VERSION_CODES.Q) {
                startForeground(NOTIFICATION, shown, ServiceInfo.FOREGROUND_SERVICE_TYPE_DATA_SYNC);
            } else {
                startForeground(NOTIFICATION, shown);
            }
            return true;
        } catch (IllegalStateException refused) {
            Log.w("fedspzo", "the service may not go on", refused);
            return false;
        }
    }

    private Notification notification(String text) {
        Intent open = new Intent(this, MainActivity.class), pause = new Intent(PAUSE, null, this, TrainingService.class);
        PendingIntent pausing = PendingIntent.getService(this, 0, pause, PendingIntent.FLAG_IMMUTABLE);
        return new Notification.Builder(this, CHANNEL)
                .setSmallIcon(R.drawable.notification)
                .setContentTitle(getString(R.string.app_name))
                .setContentText(text)
                .setContentIntent(PendingIntent.getActivity(this, 0, open, PendingIntent.FLAG_IMMUTABLE))
                .addAction(new Notification.Action.Builder(null, getString(R.string.pause), pausing).build())
                .setOngoing(true)
                .setOnlyAlertOnce(true)
                .build();
    }
}
