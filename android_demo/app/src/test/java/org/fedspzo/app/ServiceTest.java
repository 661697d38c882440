package org.fedspzo.app;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertNotNull;
import static org.junit.Assert.assertTrue;
import static org.robolectric.Shadows.shadowOf;

import android.app.ForegroundServiceStartNotAllowedException;
import android.app.Notification;
import android.app.NotificationManager;
import android.content.ComponentName;
import android.content.Context;
import android.content.ContextWrapper;
import android.content.Intent;
import android.content.pm.ServiceInfo;
import android.os.SystemClock;

import org.json.JSONObject;
import org.junit.After;
import org.junit.Before;
import org.junit.Test;
import org.junit.runner.RunWith;
import org.robolectric.Robolectric;
import org.robolectric.android.controller.ServiceController;
import org.robolectric.shadows.ShadowPowerManager;

/** The service, while the broker is away. */
@RunWith(PhoneRunner.class)
public final class ServiceTest {
    private Phone phone;
    private ServiceController<TrainingService> service;

    @Before
    public void readyPhone() throws Exception {
        phone = Phone.ready(Phone.NOWHERE);
        service = Robolectric.buildService(TrainingService.class).create();
    }

    @After
    public void rest() throws Exception {
        phone.done("rest");
    }

    private void trains() throws Exception {
        phone.waitFor("training", status -> status.getBoolean("running"));
    }

    private void ends() throws Exception {
        Wait.until("the service ends by itself", () -> shadowOf(service.get()).isStoppedBySelf());
    }

    @Test
    public void itTrainsInTheForegroundWithANotification() throws Exception {
        service.startCommand(0, 1);
        trains();
        Notification shown = shadowOf(service.get()).getLastForegroundNotification();
        assertEquals(phone.app.getString(R.string.now_connecting), shown.extras.getString(Notification.EXTRA_TEXT));
        assertEquals(ServiceInfo.FOREGROUND_SERVICE_TYPE_DATA_SYNC, service.get().getForegroundServiceType());
        assertEquals(Notification.FLAG_ONGOING_EVENT, shown.flags & Notification.FLAG_ONGOING_EVENT);
        assertEquals(MainActivity.class.getName(),
                shadowOf(shown.contentIntent).getSavedIntent().getComponent().getClassName());
    }

    @Test
    public void itTellsWhatTheFirstCardTells() throws Exception {
        service.startCommand(0, 1);
        trains();
        service.get().changed(new JSONObject(States.learning()));
        assertEquals("Learning: round 12 of 40", told());
        service.get().changed(new JSONObject(States.learning()).put("unmet", "unmetered"));
        assertEquals(phone.app.getString(R.string.now_network), told());
    }

    private String told() {
        NotificationManager manager = phone.app.getSystemService(NotificationManager.class);
        return manager.getActiveNotifications()[0].getNotification().extras.getString(Notification.EXTRA_TEXT);
    }

    @Test
    public void aSecondStartChangesNothing() throws Exception {
        service.startCommand(0, 1).startCommand(0, 2);
        trains();
        service.destroy();
        phone.waitFor("rest", status -> !status.getBoolean("running"));
    }

    @Test
    public void itTrainsAgainAfterAnEnd() throws Exception {
        service.startCommand(0, 1);
        trains();
        service.destroy();
        phone.waitFor("rest", status -> !status.getBoolean("running"));
        service = Robolectric.buildService(TrainingService.class).create().startCommand(0, 1);
        trains();
    }

    @Test
    public void androidStartsItWithoutAnIntent() throws Exception {
        service.get().onStartCommand(null, 0, 1);
        trains();
    }

    @Test
    public void itEndsWhereSomethingIsMissing() throws Exception {
        phone.done("leave");
        service.startCommand(0, 1);
        ends();
        service.destroy();
        assertFalse(awake());
    }

    @Test
    public void androidRefusesItOnceTheScreenIsGone() {
        Context background = new ContextWrapper(phone.app) {
            @Override
            public ComponentName startForegroundService(Intent intent) {
                throw new ForegroundServiceStartNotAllowedException("the app is in the background");
            }
        };
        assertFalse(TrainingService.start(background));
        assertTrue(TrainingService.start(phone.app));
    }

    @Test
    public void itEndsWhenTheDaysHoursAreUsedUp() throws Exception {
        shadowOf(service.get()).setThrowInStartForeground(
                new ForegroundServiceStartNotAllowedException("Time limit already exhausted for foreground service type dataSync"));
        service.startCommand(0, 1);
        assertTrue(shadowOf(service.get()).isStoppedBySelf());
        assertFalse(phone.status().getBoolean("running"));
        assertFalse(awake());
    }

    @Test
    public void whenItsTimeIsOutItRestsAndTheJobGoesOn() throws Exception {
        TrainingJob.schedule(phone.app);
        service.startCommand(0, 1);
        trains();
        service.get().onTimeout(1, ServiceInfo.FOREGROUND_SERVICE_TYPE_DATA_SYNC);
        assertTrue(shadowOf(service.get()).isStoppedBySelf());
        service.destroy();
        phone.waitFor("rest", status -> !status.getBoolean("running"));
        assertFalse(phone.status().getBoolean("paused"));
        assertNotNull(JobTest.pending(phone.app));
    }

    @Test
    public void itIsPausedFromTheNotification() throws Exception {
        TrainingJob.schedule(phone.app);
        service.startCommand(0, 1);
        trains();
        Notification.Action action = shadowOf(service.get()).getLastForegroundNotification().actions[0];
        assertEquals(phone.app.getString(R.string.pause), action.title);
        assertTrue(action.actionIntent.isService() && action.actionIntent.isImmutable());
        service.withIntent(shadowOf(action.actionIntent).getSavedIntent()).startCommand(0, 2);
        ends();
        assertTrue(phone.status().getBoolean("paused"));
        assertEquals(null, JobTest.pending(phone.app));
    }

    @Test
    public void theProcessorSleepsWhileTheBrokerIsAway() throws Exception {
        service.startCommand(0, 1);
        assertTrue("while it starts", awake());
        trains();
        Wait.until("sleep", () -> !awake());
        assertTrue(phone.status().getBoolean("running"));
    }

    @Test
    public void theProcessorIsKeptAwakeForATimeAtMost() throws Exception {
        service.startCommand(0, 1);
        service.get().changed(new JSONObject("{'running': true, 'working': false}"));
        assertFalse("while it waits for Wi-Fi", awake());
        service.get().changed(new JSONObject("{'running': true, 'working': true}"));
        assertTrue(awake());
        SystemClock.setCurrentTimeMillis(SystemClock.uptimeMillis() + 16 * 60 * 1000);
        assertFalse("without news for 16 minutes", awake());
    }

    @Test
    public void theProcessorMaySleepAfterTheEnd() throws Exception {
        service.startCommand(0, 1);
        trains();
        service.destroy();
        Host.of(phone.app).tell();
        phone.waitFor("rest", status -> !status.getBoolean("running"));
        assertFalse(awake());
    }

    private static boolean awake() {
        return ShadowPowerManager.getLatestWakeLock() != null && ShadowPowerManager.getLatestWakeLock().isHeld();
    }
}
