package org.fedspzo.app;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertTrue;
import static org.robolectric.Shadows.shadowOf;

import android.content.pm.PackageManager;
import android.net.ConnectivityManager;
import android.os.PowerManager;

import org.json.JSONArray;
import org.json.JSONObject;
import org.junit.After;
import org.junit.Test;
import org.junit.runner.RunWith;
import org.robolectric.Robolectric;
import org.robolectric.RuntimeEnvironment;

/** What outlives the process, and what the process is told of the phone. */
@RunWith(PhoneRunner.class)
public final class ProcessTest {
    private Phone phone;

    @After
    public void haveAll() {
        System.clearProperty(PhoneRunner.LACKING);
    }

    @Test
    public void whatWasSetUpIsThereInTheNextProcess() throws Exception {
        phone = Phone.ready(Phone.NOWHERE);
        phone.done("set_limits", "{\"charging\": true}");
        phone.done("pause");
        String key = phone.done("show_key").getString("line");
        JSONObject before = phone.status();
        phone.startAgain();
        assertEquals(before.toString(), phone.status().toString());
        assertTrue(phone.status().getBoolean("paused"));
        assertEquals(key, phone.done("show_key").getString("line"));
        phone.done("check_ready");
    }

    @Test
    public void reactionsAndSuggestionsOutliveNoProcess() throws Exception {
        phone = Phone.ready(Phone.NOWHERE);
        phone.done("predict", "{\"text\": \"call mum\"}", 0.0);
        phone.startAgain();
        assertEquals("device.no-suggestion", phone.ask("react", true, "").getString("kind"));
        assertEquals(12, phone.status().getInt("examples"));
    }

    @Test
    public void leavingForgetsTheFederationAndKeepsTheExamples() throws Exception {
        phone = Phone.ready(Phone.NOWHERE);
        phone.done("show_key");
        phone.done("leave");
        phone.startAgain();
        JSONObject status = phone.status();
        assertEquals("", status.getString("broker"));
        assertEquals(12, status.getInt("examples"));
        assertFalse(status.isNull("task"));
    }

    @Test
    public void withoutTheKernelNumpyDoesTheSame() throws Exception {
        System.setProperty(PhoneRunner.LACKING, "directions LiteRt");
        phone = Phone.ready(Phone.NOWHERE);
        JSONArray labels = phone.done("predict", "{\"text\": \"call mum\"}", 0.0).getJSONArray("labels");
        assertEquals(3, labels.length());
    }

    @Test
    public void pythonReadsThePhonesBattery() throws Exception {
        phone = Phone.fresh();
        phone.battery(10, false);
        JSONObject status = phone.status();
        assertEquals(0.1, status.getDouble("battery"), 1e-9);
        assertFalse(status.getBoolean("charging"));
        assertEquals(30.1, status.getDouble("temperature"), 1e-9);
        assertTrue(status.getString("waits"), status.getString("waits").contains("10%"));
        phone.battery(50, true);
        assertEquals("", phone.status().getString("waits"));
        assertTrue(phone.status().getBoolean("charging"));
    }

    @Test
    public void pythonReadsThePhonesNetwork() throws Exception {
        phone = Phone.fresh();
        assertFalse(phone.status().getBoolean("metered"));
        phone.network(ConnectivityManager.TYPE_MOBILE);
        assertTrue(phone.status().getBoolean("metered"));
        assertTrue(phone.status().getString("waits").contains("metered"));
    }

    @Test
    public void pythonReadsThePhonesHeat() throws Exception {
        phone = Phone.fresh();
        assertFalse(phone.status().getBoolean("throttled"));
        phone.heat(PowerManager.THERMAL_STATUS_SEVERE);
        assertTrue(phone.status().getBoolean("throttled"));
    }

    @Test
    public void withoutTheRightToNotifyItTrainsAllTheSame() throws Exception {
        phone = Phone.ready(Phone.NOWHERE);
        MainActivity screen = Robolectric.setupActivity(MainActivity.class);
        Wait.until("Start can be tapped", () -> screen.findViewById(R.id.start).isEnabled());
        screen.findViewById(R.id.start).performClick();
        String[] asked = shadowOf(screen).getLastRequestedPermission().requestedPermissions;
        assertEquals("android.permission.POST_NOTIFICATIONS", asked[0]);
        screen.onRequestPermissionsResult(shadowOf(screen).getLastRequestedPermission().requestCode, asked,
                new int[] {PackageManager.PERMISSION_DENIED});
        Wait.until("the service", () ->
                shadowOf(RuntimeEnvironment.getApplication()).peekNextStartedService() != null);
        assertEquals(TrainingService.class.getName(), shadowOf(RuntimeEnvironment.getApplication())
                .peekNextStartedService().getComponent().getClassName());
    }
}
