package org.fedspzo.app;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertNull;
import static org.junit.Assert.assertTrue;

import android.app.Dialog;
import android.content.Intent;
import android.net.Uri;
import android.util.Base64;
import android.widget.TextView;

import org.json.JSONObject;
import org.junit.Before;
import org.junit.Test;
import org.junit.runner.RunWith;
import org.robolectric.Robolectric;
import org.robolectric.shadows.ShadowDialog;

import java.util.Arrays;

/** Invitations come from a camera app, a page, or another app: anybody may send one. */
@RunWith(PhoneRunner.class)
public final class InvitationTest {
    private Phone phone;

    @Before
    public void newPhone() {
        phone = Phone.fresh();
    }

    private static String said() throws Exception {
        Wait.until("a dialog", () -> ShadowDialog.getLatestDialog() != null && ShadowDialog.getLatestDialog().isShowing());
        TextView message = ShadowDialog.getLatestDialog().findViewById(android.R.id.message);
        return message.getText().toString();
    }

    private static void open(String link) {
        Robolectric.buildActivity(MainActivity.class, new Intent(Intent.ACTION_VIEW, Uri.parse(link))).setup();
    }

    /** Refused in a sentence, and nobody is joined. */
    private void refused(String invitation) throws Exception {
        JSONObject answer = phone.ask("describe_invitation", invitation);
        assertTrue(answer.toString(), answer.has("kind"));
        assertTrue(answer.toString(), answer.getString("error").length() < 500);
        assertFalse(answer.toString(), answer.getString("error").contains("Error"));
        assertTrue(phone.ask("enrol", invitation).has("kind"));
        assertEquals("", phone.status().getString("broker"));
    }

    private static String base64(byte... record) {
        return "fedspzo:" + Base64.encodeToString(record, Base64.URL_SAFE | Base64.NO_PADDING | Base64.NO_WRAP);
    }

    @Test
    public void aLinkIsShownBeforeItCounts() throws Exception {
        open("fedspzo:" + invitation("phone-1"));
        assertTrue(said(), said().contains("127.0.0.1:9"));
        assertEquals("", phone.status().getString("broker"));
        Dialog dialog = ShadowDialog.getLatestDialog();
        dialog.findViewById(android.R.id.button2).performClick();
        assertEquals("", phone.status().getString("broker"));
    }

    @Test
    public void aLinkThatIsAgreedToCounts() throws Exception {
        open("fedspzo:" + invitation("phone-1"));
        EndToEndTest.agree("phone-1");
        phone.waitFor("joined", status -> status.getString("device").equals("phone-1"));
    }

    @Test
    public void aLinkThatIsNoInvitationIsRefusedInASentence() throws Exception {
        Intent link = new Intent(Intent.ACTION_VIEW, Uri.parse("fedspzo:garbage"));
        MainActivity page = Robolectric.buildActivity(MainActivity.class, link).setup().get();
        int said = com.google.android.material.R.id.snackbar_text;
        Wait.until("a snackbar", () -> page.findViewById(said) != null);
        assertEquals(page.getString(R.string.problem_invitation), ((TextView) page.findViewById(said)).getText().toString());
    }

    @Test
    public void anotherKindOfIntentOpensTheScreenAlone() throws Exception {
        for (Intent intent : new Intent[] {
            new Intent(Intent.ACTION_MAIN), new Intent(Intent.ACTION_VIEW), new Intent(),
            new Intent(Intent.ACTION_SEND).setData(Uri.parse("fedspzo:garbage"))
        }) {
            Robolectric.buildActivity(MainActivity.class, intent).setup();
        }
        phone.done("set_limits", "{}"); // after what they may have asked for
        assertNull(ShadowDialog.getLatestDialog());
    }

    @Test
    public void anInvitationToAnotherJobIsRefused() throws Exception {
        phone.done("enrol", Phone.NOWHERE);
        JSONObject answer = phone.ask("enrol", "mqtt://somebody:else@127.0.0.1:9");
        assertTrue(answer.toString(), answer.getString("error").contains("leave it before you join"));
        assertEquals("phone-1", phone.status().getString("device"));
    }

    @Test
    public void aNewLoginForTheSamePhoneIsTaken() throws Exception {
        phone.done("enrol", Phone.NOWHERE);
        phone.done("enrol", "mqtt://phone-1:new@127.0.0.2:9");
        assertTrue(phone.status().getString("broker").contains("127.0.0.2"));
    }

    @Test
    public void nothingIsRefused() throws Exception {
        refused("");
        refused("fedspzo:");
        refused("fedspzo:=");
    }

    @Test
    public void aMegabyteIsRefused() throws Exception {
        refused("fedspzo:" + "A".repeat(1 << 20));
    }

    @Test
    public void recordsOfAnotherShapeAreRefused() throws Exception {
        refused(base64((byte) 0xf6)); // null
        refused(base64((byte) 0x80)); // []
        refused(base64((byte) 0x86, (byte) 1, (byte) 0xf6, (byte) 0xf6, (byte) 0xf6, (byte) 0xf6, (byte) 0xf6));
        refused(base64((byte) 0x9b, (byte) 0x7f, (byte) -1, (byte) -1, (byte) -1, (byte) -1, (byte) -1, (byte) -1, (byte) -1));
        refused(base64((byte) 0x5b, (byte) 0x7f, (byte) -1, (byte) -1, (byte) -1, (byte) -1, (byte) -1, (byte) -1, (byte) -1));
    }

    @Test
    public void deepNestingIsRefused() throws Exception {
        byte[] arrays = new byte[100_000];
        Arrays.fill(arrays, (byte) 0x81);
        refused(base64(arrays));
        refused("{\"a\":".repeat(100_000));
        refused("[".repeat(100_000));
    }

    @Test
    public void otherSchemesAndStrangeCharactersAreRefused() throws Exception {
        refused("http://example.org/");
        refused("javascript:alert(1)");
        refused("fedspzo:\u0000\u202E漢");
        refused("{\"url\": 3}");
    }

    /** As fedspzo enroll --qr prints it, without its scheme. */
    private static String invitation(String device) {
        byte[] url = "mqtt://127.0.0.1:9".getBytes(), user = device.getBytes(), password = "pw".getBytes();
        byte[] record = new byte[6 + url.length + user.length + password.length + 8];
        int at = 0;
        record[at++] = (byte) 0x86;
        record[at++] = 1;
        for (byte[] text : new byte[][] {url, user, password}) {
            record[at++] = (byte) (0x60 + text.length);
            System.arraycopy(text, 0, record, at, text.length);
            at += text.length;
        }
        record[at++] = (byte) 0x80;
        byte[] job = "default".getBytes();
        record[at++] = (byte) (0x60 + job.length);
        System.arraycopy(job, 0, record, at, job.length);
        return base64(Arrays.copyOf(record, at + job.length)).substring("fedspzo:".length());
    }
}
