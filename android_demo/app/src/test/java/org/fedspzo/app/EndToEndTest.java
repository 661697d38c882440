package org.fedspzo.app;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertNotNull;
import static org.junit.Assert.assertTrue;
import static org.robolectric.Shadows.shadowOf;

import android.app.Activity;
import android.app.Dialog;
import android.content.Intent;
import android.net.Uri;
import android.widget.TextView;

import org.json.JSONObject;
import org.junit.Rule;
import org.junit.Test;
import org.junit.rules.TemporaryFolder;
import org.junit.runner.RunWith;
import org.robolectric.Robolectric;
import org.robolectric.RuntimeEnvironment;
import org.robolectric.android.controller.ServiceController;
import org.robolectric.shadows.ShadowActivity;
import org.robolectric.shadows.ShadowDialog;
import org.robolectric.shadows.ShadowPowerManager;

import java.io.FileInputStream;
import java.util.HashSet;
import java.util.Iterator;
import java.util.Set;

/** From a tap on Start through service, Python, LiteRT and mosquitto over TLS to the server's digest. */
@RunWith(PhoneRunner.class)
public final class EndToEndTest {
    private static final int ROUNDS = 20, BEFORE = 5;

    @Rule
    public final TemporaryFolder folder = new TemporaryFolder();

    @Test
    public void aPhoneThatIsInvitedTrainsToTheServersDigest() throws Exception {
        Phone phone = Phone.fresh();
        try (Outside.Federation federation = new Outside.Federation(folder.getRoot(), ROUNDS)) {
            Intent link = new Intent(Intent.ACTION_VIEW, Uri.parse(federation.invitation));
            MainActivity screen = Robolectric.buildActivity(MainActivity.class, link).setup().get();
            agree("phone-1");
            phone.waitFor("joined", status -> !status.getString("broker").isEmpty());
            Wait.until("a bundle is offered", () -> screen.findViewById(R.id.download).isShown());
            screen.findViewById(R.id.download).performClick();
            phone.waitFor("a bundle", status -> !status.isNull("task"));
            choose(screen, R.id.import_data, "examples.jsonl");
            phone.waitFor("examples", status -> status.getInt("examples") == 12);

            shadowOf(RuntimeEnvironment.getApplication()).grantPermissions("android.permission.POST_NOTIFICATIONS");
            Wait.until("Start can be tapped", () -> screen.findViewById(R.id.start).isEnabled());
            screen.findViewById(R.id.start).performClick();
            Intent[] asked = new Intent[1];
            Wait.until("a service", () -> {
                asked[0] = shadowOf(RuntimeEnvironment.getApplication()).getNextStartedService();
                return asked[0] != null;
            });
            assertNotNull(JobTest.pending(phone.app));
            ServiceController<TrainingService> service =
                    Robolectric.buildService(TrainingService.class, asked[0]).create().startCommand(0, 1);
            phone.waitFor("rounds", status -> status.getJSONArray("losses").length() >= BEFORE);
            assertTrue("while it works", ShadowPowerManager.getLatestWakeLock().isHeld());
            phone.waitFor("the end", status -> status.getBoolean("finished"));
            Wait.until("the service ends by itself", () -> shadowOf(service.get()).isStoppedBySelf());
            Wait.until("the job has nothing to do any more", () -> JobTest.pending(phone.app) == null);
            assertEquals(ROUNDS, phone.status().getJSONArray("losses").length());
            assertEquals(Set.of(phone.digest()), values(federation.end()));
            service.destroy();
        }
    }

    /** Tap the first button of the dialog that asks, once it is there and says this. */
    static void agree(String words) throws Exception {
        Wait.until("a dialog", () -> ShadowDialog.getLatestDialog() != null && ShadowDialog.getLatestDialog().isShowing());
        Dialog dialog = ShadowDialog.getLatestDialog();
        String text = ((TextView) dialog.findViewById(android.R.id.message)).getText().toString();
        assertTrue(text, text.contains(words));
        dialog.findViewById(android.R.id.button1).performClick();
    }

    /** Tap a button that imports, and choose a file. */
    static void choose(MainActivity screen, int button, String name) throws Exception {
        screen.findViewById(button).performClick();
        ShadowActivity.IntentForResult asked = shadowOf(screen).getNextStartedActivityForResult();
        Uri uri = Uri.parse("content://test/" + name);
        shadowOf(screen.getContentResolver()).registerInputStream(uri, new FileInputStream(Outside.file(name)));
        shadowOf(screen).receiveResult(asked.intent, Activity.RESULT_OK, new Intent().setData(uri));
    }

    static Set<String> values(JSONObject digests) throws Exception {
        Set<String> found = new HashSet<>();
        for (Iterator<String> name = digests.keys(); name.hasNext(); ) {
            found.add(digests.getString(name.next()));
        }
        return found;
    }
}
