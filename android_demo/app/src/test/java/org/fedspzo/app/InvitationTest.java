package org.fedspzo.app;

import static org.junit.Assert.assertTrue;

import android.content.Intent;
import android.net.Uri;
import android.widget.TextView;

import org.junit.Before;
import org.junit.Test;
import org.junit.runner.RunWith;
import org.robolectric.Robolectric;
import org.robolectric.Shadows;
import org.robolectric.shadows.ShadowAlertDialog;

@RunWith(PhoneRunner.class)
public final class InvitationTest {
    @Before
    public void newPhone() {
        Keystore.install();
    }

    @Test
    public void aLinkThatIsNoInvitationIsRefusedInASentence() throws Exception {
        Intent link = new Intent(Intent.ACTION_VIEW, Uri.parse("fedspzo:garbage"));
        Robolectric.buildActivity(MainActivity.class, link).setup();
        Wait.until("a dialog", () -> ShadowAlertDialog.getLatestDialog() != null);
        TextView said = ShadowAlertDialog.getLatestDialog().findViewById(android.R.id.message);
        assertTrue(said.getText().toString(), said.getText().toString().contains("invitation"));
    }
}
