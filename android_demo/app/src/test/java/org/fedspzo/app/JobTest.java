package org.fedspzo.app;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertNull;
import static org.junit.Assert.assertTrue;
import static org.robolectric.Shadows.shadowOf;

import android.app.job.JobInfo;
import android.app.job.JobParameters;
import android.app.job.JobScheduler;
import android.content.Context;

import org.junit.After;
import org.junit.Before;
import org.junit.Test;
import org.junit.runner.RunWith;
import org.robolectric.Robolectric;
import org.robolectric.android.controller.ServiceController;
import org.robolectric.shadow.api.Shadow;

import java.util.List;

@RunWith(PhoneRunner.class)
public final class JobTest {
    private final JobParameters parameters = Shadow.newInstanceOf(JobParameters.class);
    private Phone phone;
    private TrainingJob job;

    @Before
    public void readyPhone() throws Exception {
        phone = Phone.ready(Phone.NOWHERE);
        job = Robolectric.buildService(TrainingJob.class).create().get();
    }

    @After
    public void rest() throws Exception {
        phone.done("rest");
    }

    static JobInfo pending(Context context) {
        List<JobInfo> all = context.getSystemService(JobScheduler.class).getAllPendingJobs();
        assertTrue("" + all.size(), all.size() <= 1);
        return all.isEmpty() ? null : all.get(0);
    }

    private boolean finished() {
        return shadowOf(job).getIsJobFinished();
    }

    private void trains(boolean wanted) throws Exception {
        phone.waitFor("training: " + wanted, status -> status.getBoolean("running") == wanted);
    }

    @Test
    public void itIsScheduledForChargingIdlenessAndWifi() {
        TrainingJob.schedule(phone.app);
        TrainingJob.schedule(phone.app);
        JobInfo info = pending(phone.app);
        assertEquals(TrainingJob.class.getName(), info.getService().getClassName());
        assertTrue(info.isRequireCharging() && info.isRequireDeviceIdle() && info.isPersisted() && info.isPeriodic());
        assertEquals(JobInfo.NETWORK_TYPE_UNMETERED, info.getNetworkType());
    }

    @Test
    public void itIsCancelled() {
        TrainingJob.schedule(phone.app);
        TrainingJob.cancel(phone.app);
        assertNull(pending(phone.app));
    }

    @Test
    public void itTrainsUntilAndroidStopsIt() throws Exception {
        assertTrue(job.onStartJob(parameters));
        trains(true);
        assertFalse("the next period comes by itself", job.onStopJob(parameters));
        trains(false);
        assertFalse(finished());
        assertFalse(phone.status().getBoolean("paused"));
    }

    @Test
    public void itTrainsAgainInTheNextPeriod() throws Exception {
        job.onStartJob(parameters);
        trains(true);
        job.onStopJob(parameters);
        trains(false);
        job.onStartJob(parameters);
        trains(true);
    }

    @Test
    public void itEndsWhereSomethingIsMissing() throws Exception {
        phone.done("leave");
        job.onStartJob(parameters);
        Wait.until("the job's end", this::finished);
        assertFalse(shadowOf(job).getIsRescheduleNeeded());
    }

    @Test
    public void itEndsWhenThePersonPauses() throws Exception {
        job.onStartJob(parameters);
        trains(true);
        phone.done("pause");
        Wait.until("the job's end", this::finished);
    }

    @Test
    public void theTrainingGoesOnWhileTheServiceHoldsIt() throws Exception {
        ServiceController<TrainingService> service =
                Robolectric.buildService(TrainingService.class).create().startCommand(0, 1);
        job.onStartJob(parameters);
        trains(true);
        job.onStopJob(parameters);
        phone.done("check_ready"); // after what the end of the job would have asked for
        assertTrue(phone.status().getBoolean("running"));
        service.destroy();
        trains(false);
    }
}
