package org.fedspzo.app;

import static org.junit.Assert.assertEquals;

import android.content.Intent;
import android.net.Uri;
import android.widget.TextView;

import org.junit.Before;
import org.junit.Test;
import org.junit.runner.RunWith;
import org.robolectric.Robolectric;

@RunWith(PhoneRunner.class)
public final class InvitationTest {
    @Before
    public void newPhone() {
        Keystore.install();
    }

    @Test
    public void aLinkThatIsNoInvitationIsRefusedInASentence() throws Exception {
        Intent link = new Intent(Intent.ACTION_VIEW, Uri.parse("fedspzo:garbage"));
        MainActivity page = Robolectric.buildActivity(MainActivity.class, link).setup().get();
        int said = com.google.android.material.R.id.snackbar_text;
        Wait.until("a snackbar", () -> page.findViewById(said) != null);
        assertEquals(page.getString(R.string.problem_invitation), ((TextView) page.findViewById(said)).getText().toString());
    }
}
