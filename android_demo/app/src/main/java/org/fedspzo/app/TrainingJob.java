package org.fedspzo.app;

import android.app.job.JobInfo;
import android.app.job.JobParameters;
import android.app.job.JobScheduler;
import android.app.job.JobService;
import android.content.ComponentName;
import android.content.Context;

import org.json.JSONObject;

/**
 * Trains while the phone charges, is idle and on an unmetered network, for as long as Android lets it. The training runs
 * in the job itself: since Android 12 an app in the background may not start a foreground service.
 */
public final class TrainingJob extends JobService implements Host.Holder {
    private static final int ID = 1;
    private static final long PERIOD_MS = 60 * 60 * 1000;

    private JobParameters running;

    static void schedule(Context context) {
        JobInfo job = new JobInfo.Builder(ID, new ComponentName(context, TrainingJob.class))
                .setRequiresCharging(true)
                .setRequiresDeviceIdle(true)
                .setRequiredNetworkType(JobInfo.NETWORK_TYPE_UNMETERED)
                .setPeriodic(PERIOD_MS)
                .setPersisted(true)
                .build();
        scheduler(context).schedule(job);
    }

    static void cancel(Context context) {
        scheduler(context).cancel(ID);
    }

    @Override
    public boolean onStartJob(JobParameters parameters) {
        running = parameters;
        Host.of(this).hold(this, answer -> {
            if (answer.has("error")) {
                finish();
            }
        });
        return true;
    }

    @Override
    public void changed(JSONObject status) {
        if (!status.optBoolean("running")) {
            finish();
        }
    }

    @Override
    public boolean onStopJob(JobParameters parameters) {
        running = null;
        Host.of(this).release(this);
        return false; // the next period comes by itself
    }

    private void finish() {
        if (running != null) {
            jobFinished(running, false);
            running = null;
            Host.of(this).release(this);
        }
    }

    private static JobScheduler scheduler(Context context) {
        return (JobScheduler) context.getSystemService(Context.JOB_SCHEDULER_SERVICE);
    }
}
