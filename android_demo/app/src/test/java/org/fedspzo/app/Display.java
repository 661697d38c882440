package org.fedspzo.app;

import static org.junit.Assert.assertTrue;

import android.app.Activity;
import android.app.Dialog;
import android.content.Intent;
import android.view.Menu;
import android.view.View;
import android.widget.EditText;
import android.widget.TextView;

import androidx.appcompat.app.AlertDialog;

import com.google.android.material.appbar.MaterialToolbar;

import org.robolectric.Robolectric;
import org.robolectric.RuntimeEnvironment;
import org.robolectric.android.controller.ActivityController;
import org.robolectric.shadows.ShadowDialog;
import org.robolectric.shadows.ShadowLooper;

import java.util.Locale;

/** A phone or a tablet on which the app is opened, with Python's part played by {@link FakeHost}. */
final class Display {
    static final String PHONE = "w411dp-h914dp-port-hdpi", TALL = "w411dp-h1500dp-port-hdpi", LARGE_TALL = "w411dp-h2400dp-port-hdpi",
            TABLET = "w1280dp-h800dp-land-mdpi";

    final FakeHost host = FakeHost.install();

    Display(String qualifiers, String more, float fontScale) {
        RuntimeEnvironment.setQualifiers((more.startsWith("de") ? "de-" : "en-") + qualifiers.replace("-port", dark(more, "-port"))
                .replace("-land", dark(more, "-land")));
        RuntimeEnvironment.setFontScale(fontScale);
        Locale.setDefault(more.startsWith("de") ? Locale.GERMANY : Locale.US); // as Android does
    }

    static Display plain() {
        return new Display(TALL, "", 1);
    }

    private static String dark(String more, String orientation) {
        return orientation + (more.endsWith("night") ? "-night" : "-notnight");
    }

    /** Open a page at a status. */
    <A extends Activity> ActivityController<A> open(Class<A> page, String status) {
        host.status(status);
        ActivityController<A> controller = Robolectric.buildActivity(page, new Intent(Intent.ACTION_MAIN)).setup();
        settle();
        return controller;
    }

    MainActivity open(String status) {
        return open(MainActivity.class, status).get();
    }

    /** Let everything that is posted happen, and animations end. */
    static void settle() {
        ShadowLooper.idleMainLooper(600, java.util.concurrent.TimeUnit.MILLISECONDS);
    }

    static boolean seen(Activity page, int id) {
        View view = page.findViewById(id);
        return view != null && view.isShown();
    }

    static void tap(Activity page, int id) {
        View view = page.findViewById(id);
        if (!view.isShown() || !view.isEnabled() || !view.isClickable()) {
            throw new AssertionError("cannot be tapped: " + page.getResources().getResourceEntryName(id));
        }
        view.performClick();
        settle();
    }

    static String text(Activity page, int id) {
        return ((TextView) page.findViewById(id)).getText().toString();
    }

    /** What the snackbar says. */
    static String said(Activity page) {
        return text(page, com.google.android.material.R.id.snackbar_text);
    }

    /** Where the task's text is typed. */
    static EditText field(Activity page) {
        return page.findViewById(R.id.fields).findViewWithTag("text");
    }

    static Menu menu(Activity page) {
        return ((MaterialToolbar) page.findViewById(R.id.toolbar)).getMenu();
    }

    /** The dialog that is shown. */
    static AlertDialog dialog() {
        settle();
        Dialog found = ShadowDialog.getLatestDialog();
        assertTrue("no dialog", found != null && found.isShowing());
        return (AlertDialog) found;
    }

    static String message(AlertDialog dialog) {
        return text(dialog, android.R.id.message);
    }

    private static String text(Dialog dialog, int id) {
        return ((TextView) dialog.findViewById(id)).getText().toString();
    }

    static void agree(AlertDialog dialog) {
        dialog.getButton(AlertDialog.BUTTON_POSITIVE).performClick();
        settle();
    }

    static MainActivity turned(ActivityController<MainActivity> controller) {
        RuntimeEnvironment.setQualifiers("+w914dp-h411dp-land");
        controller.recreate();
        settle();
        return controller.get();
    }
}
