package org.fedspzo.app;

import static org.fedspzo.app.Display.agree;
import static org.fedspzo.app.Display.dialog;
import static org.fedspzo.app.Display.menu;
import static org.fedspzo.app.Display.seen;
import static org.fedspzo.app.Display.tap;
import static org.fedspzo.app.Display.text;
import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertTrue;
import static org.robolectric.Shadows.shadowOf;

import android.content.Intent;
import android.content.pm.ResolveInfo;
import android.net.Uri;
import android.provider.Settings;
import android.widget.CompoundButton;

import org.junit.Test;
import org.junit.runner.RunWith;
import org.robolectric.RuntimeEnvironment;
import org.robolectric.shadows.ShadowApplication;

/** The page apart: limits, key, leaving. */
@RunWith(PhoneRunner.class)
public final class SettingsTest {
    private final Display display = Display.plain();

    @Test
    public void settingsAreApartAndKept() {
        MainActivity first = display.open(States.better());
        menu(first).performIdentifierAction(R.id.settings, 0);
        Intent next = shadowOf(first).getNextStartedActivity();
        assertEquals(SettingsActivity.class.getName(), next.getComponent().getClassName());
        SettingsActivity page = display.open(SettingsActivity.class, States.better()).get();
        assertTrue(((CompoundButton) page.findViewById(R.id.only_unmetered)).isChecked());
        tap(page, R.id.only_charging);
        assertEquals("set_limits[{\"charging\":true,\"unmetered\":true}]", display.host.last());
    }

    @Test
    public void leavingIsAskedFor() {
        SettingsActivity page = display.open(SettingsActivity.class, States.better()).get();
        tap(page, R.id.leave);
        assertFalse(display.host.asked.contains("leave[]"));
        agree(dialog());
        assertTrue(display.host.asked.contains("leave[]"));
    }

    @Test
    public void batterySaversAreShown() {
        SettingsActivity page = display.open(SettingsActivity.class, States.better()).get();
        tap(page, R.id.background);
        assertEquals(Settings.ACTION_IGNORE_BATTERY_OPTIMIZATION_SETTINGS, shadowOf(page).getNextStartedActivity().getAction());
        ShadowApplication phone = shadowOf(RuntimeEnvironment.getApplication());
        phone.checkActivities(true); // so that a phone without such a list has the app's own page alone
        shadowOf(page.getPackageManager()).addResolveInfoForIntent(new Intent(Settings.ACTION_APPLICATION_DETAILS_SETTINGS,
                Uri.fromParts("package", page.getPackageName(), null)), new ResolveInfo());
        tap(page, R.id.background);
        assertEquals(Settings.ACTION_APPLICATION_DETAILS_SETTINGS, phone.getNextStartedActivity().getAction());
    }

    @Test
    public void theKeyIsShared() {
        display.host.answer("show_key", "{\"line\": \"phone-1 abcd\"}");
        SettingsActivity page = display.open(SettingsActivity.class, States.better()).get();
        tap(page, R.id.key);
        Intent chooser = shadowOf(page).getNextStartedActivity();
        Intent send = chooser.getParcelableExtra(Intent.EXTRA_INTENT, Intent.class);
        assertEquals("phone-1 abcd", send.getStringExtra(Intent.EXTRA_TEXT));
    }

    @Test
    public void whoHasNotJoinedHasNothingToLeave() {
        SettingsActivity page = display.open(SettingsActivity.class, States.newcomer()).get();
        assertFalse(seen(page, R.id.leave));
        assertFalse(seen(page, R.id.key));
        assertEquals(page.getString(R.string.not_member), text(page, R.id.member));
    }
}
