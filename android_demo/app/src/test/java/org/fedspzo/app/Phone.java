package org.fedspzo.app;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.robolectric.Shadows.shadowOf;

import android.content.Context;
import android.content.Intent;
import android.net.ConnectivityManager;
import android.net.NetworkInfo;
import android.net.Uri;
import android.os.BatteryManager;
import android.os.PowerManager;

import com.chaquo.python.PyObject;

import org.json.JSONException;
import org.json.JSONObject;
import org.robolectric.RuntimeEnvironment;
import org.robolectric.shadows.ShadowNetworkInfo;
import org.robolectric.util.ReflectionHelpers;

import java.io.File;
import java.io.FileInputStream;
import java.io.IOException;
import java.nio.file.Files;
import java.util.concurrent.atomic.AtomicReference;

/** The phone that a test has: the app's process on it, what it holds, its network and its battery. */
final class Phone {
    /** An invitation to a broker that nobody runs: port 9 discards. */
    static final String SECRET = "word-of-phone-1", NOWHERE = "mqtt://phone-1:" + SECRET + "@127.0.0.1:9";

    final Context app = RuntimeEnvironment.getApplication();

    /** Without the app's files and keys; Wi-Fi, on a cable with 80 % charge. */
    static Phone fresh() {
        Keystore.install();
        Phone phone = new Phone();
        phone.startAgain();
        phone.network(ConnectivityManager.TYPE_WIFI);
        phone.battery(80, true);
        return phone;
    }

    /** As above, with an invitation, a bundle and twelve examples. */
    static Phone ready(String invitation) throws Exception {
        Phone phone = fresh();
        phone.done("enrol", invitation);
        phone.done("import_bundle", phone.unpacked(Outside.file("bundle.zip")).getPath());
        phone.done("import_examples", phone.copy("examples.jsonl").getPath());
        return phone;
    }

    /** As after the process has ended: what it knew is gone, what it wrote is there. */
    void startAgain() {
        ReflectionHelpers.setStaticField(Host.class, "only", null);
    }

    /** Let an import have a file, which it uses up. */
    File copy(String name) throws IOException {
        File target = new File(app.getCacheDir(), name);
        Files.copy(Outside.file(name).toPath(), target.toPath());
        return target;
    }

    /** Unpack a zip file as an import does; the folder, which an import uses up. */
    File unpacked(File zip) throws IOException {
        File target = new File(app.getCacheDir(), "bundle");
        Documents.delete(target);
        Uri uri = Uri.parse("content://test/" + zip.getName());
        shadowOf(app.getContentResolver()).registerInputStream(uri, new FileInputStream(zip));
        Documents.unpack(app.getContentResolver(), uri, target, bytes -> {});
        return target;
    }

    /** The answer to a command of the App. */
    JSONObject ask(String command, Object... arguments) throws Exception {
        AtomicReference<JSONObject> answer = new AtomicReference<>();
        Host.of(app).command(answer::set, command, arguments);
        Wait.until("an answer to " + command, () -> answer.get() != null);
        return answer.get();
    }

    /** The answer to a command that must work. */
    JSONObject done(String command, Object... arguments) throws Exception {
        JSONObject answer = ask(command, arguments);
        assertFalse(command + ": " + answer.optString("error"), answer.has("error"));
        return answer;
    }

    /** What the screen is told. */
    JSONObject status() throws Exception {
        AtomicReference<JSONObject> answer = new AtomicReference<>();
        Host.of(app).status(answer::set);
        Wait.until("a status", () -> answer.get() != null);
        return answer.get();
    }

    /** The hash of the replica's weights, which the app itself does not ask for. */
    String digest() {
        PyObject app = ReflectionHelpers.callInstanceMethod(Host.of(this.app), "app");
        return app.callAttr("digest").toString();
    }

    void waitFor(String what, Condition condition) throws Exception {
        Wait.until(what, () -> condition.holds(status()));
    }

    interface Condition {
        boolean holds(JSONObject status) throws JSONException;
    }

    /** One of ConnectivityManager's types; Robolectric takes a mobile network for metered. */
    @SuppressWarnings("deprecation")
    void network(int type) {
        ConnectivityManager manager = app.getSystemService(ConnectivityManager.class);
        shadowOf(manager).setActiveNetworkInfo(ShadowNetworkInfo.newInstance(
                NetworkInfo.DetailedState.CONNECTED, type, 0, true, NetworkInfo.State.CONNECTED));
        assertEquals(type != ConnectivityManager.TYPE_WIFI, manager.isActiveNetworkMetered());
    }

    @SuppressWarnings("deprecation")
    void battery(int percent, boolean charging) {
        app.sendStickyBroadcast(new Intent(Intent.ACTION_BATTERY_CHANGED)
                .putExtra(BatteryManager.EXTRA_LEVEL, percent)
                .putExtra(BatteryManager.EXTRA_SCALE, 100)
                .putExtra(BatteryManager.EXTRA_TEMPERATURE, 301)
                .putExtra(BatteryManager.EXTRA_PLUGGED, charging ? BatteryManager.BATTERY_PLUGGED_AC : 0));
    }

    void heat(int status) {
        shadowOf(app.getSystemService(PowerManager.class)).setCurrentThermalStatus(status);
    }
}
