package org.fedspzo.app;

import static org.fedspzo.app.Display.dialog;
import static org.fedspzo.app.Display.message;
import static org.fedspzo.app.Display.said;
import static org.fedspzo.app.Display.seen;
import static org.fedspzo.app.Display.settle;
import static org.fedspzo.app.Display.tap;
import static org.fedspzo.app.Display.text;
import static org.fedspzo.app.Display.turned;
import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertTrue;
import static org.robolectric.Shadows.shadowOf;

import android.app.Activity;
import android.content.Intent;
import android.net.Uri;

import com.google.android.material.progressindicator.LinearProgressIndicator;

import org.junit.Test;
import org.junit.runner.RunWith;
import org.robolectric.android.controller.ActivityController;
import org.robolectric.shadows.ShadowActivity;

import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.io.InputStream;

/** Imports: how far they are, that they can be cancelled, and that they continue while the screen is turned. */
@RunWith(PhoneRunner.class)
public final class ImporterTest {
    private final Display display = Display.plain();

    private static ShadowActivity.IntentForResult choose(MainActivity page, InputStream content) {
        ShadowActivity.IntentForResult asked = shadowOf(page).getNextStartedActivityForResult();
        Uri uri = Uri.parse("content://test/mine.jsonl");
        shadowOf(page.getContentResolver()).registerInputStream(uri, content);
        shadowOf(page).receiveResult(asked.intent, Activity.RESULT_OK, new Intent().setData(uri));
        settle();
        return asked;
    }

    @Test
    public void anImportIsShownAndSaysHowManyCame() {
        display.host.answer("import_examples", "{\"added\": 12}");
        MainActivity page = display.open(States.withModel());
        tap(page, R.id.import_data);
        choose(page, new ByteArrayInputStream(new byte[3_000_000]));
        assertTrue(seen(page, R.id.importing));
        assertTrue(seen(page, R.id.import_cancel));
        display.host.work();
        settle();
        assertTrue(display.host.last(), display.host.last().startsWith("import_examples["));
        assertFalse(seen(page, R.id.importing));
        assertEquals("12 examples were added.", said(page));
    }

    @Test
    public void anImportGoesOnWhenTheScreenIsTurned() {
        display.host.answer("import_bundle", "{}");
        ActivityController<MainActivity> controller = display.open(MainActivity.class, States.joined());
        tap(controller.get(), R.id.import_zip);
        choose(controller.get(), new ByteArrayInputStream(DocumentsTest.zip("manifest.json", 9)));
        MainActivity page = turned(controller);
        assertTrue(seen(page, R.id.importing));
        display.host.work();
        settle();
        assertTrue("unpacked", display.host.last().endsWith("/chosen/bundle]"));
        assertFalse(seen(page, R.id.importing));
        assertEquals(page.getString(R.string.imported_bundle), said(page));
    }

    @Test
    public void anImportCanBeCancelled() {
        MainActivity page = display.open(States.withModel());
        tap(page, R.id.import_data);
        choose(page, new ByteArrayInputStream(new byte[3_000_000]));
        tap(page, R.id.import_cancel);
        display.host.work();
        settle();
        assertTrue(display.host.asked.toString(), display.host.asked.isEmpty());
        assertEquals(page.getString(R.string.import_cancelled), said(page));
        assertFalse(new java.io.File(page.getNoBackupFilesDir(), "chosen").exists());
    }

    @Test
    public void aBundleThatTheInvitationOffersIsDownloaded() {
        display.host.later("fetch_bundle");
        MainActivity page = display.open(States.downloading());
        assertFalse("one way is shown", seen(page, R.id.import_zip));
        tap(page, R.id.download);
        String said = text(page, R.id.import_state);
        assertTrue(said, said.contains("weights.safetensors") && said.contains("30") && said.contains("60"));
        assertFalse("nothing else begins", seen(page, R.id.download) || seen(page, R.id.import_file));
        assertEquals(500, ((LinearProgressIndicator) page.findViewById(R.id.import_progress)).getProgress());
        display.host.work();
        settle();
        assertFalse(seen(page, R.id.importing));
        assertEquals(page.getString(R.string.imported_bundle), said(page));
    }

    @Test
    public void aDownloadCanBeCancelled() {
        display.host.later("fetch_bundle").answer("fetch_bundle", "{\"error\": \"cancelled\", \"kind\": \"download.cancelled\"}");
        MainActivity page = display.open(States.offered());
        tap(page, R.id.download);
        assertEquals(page.getString(R.string.downloading_start), text(page, R.id.import_state));
        tap(page, R.id.import_cancel);
        assertEquals("cancel_fetch", display.host.last());
        display.host.work();
        settle();
        assertTrue("it can be tried again", seen(page, R.id.download));
        assertEquals(page.getString(R.string.import_cancelled), said(page));
    }

    @Test
    public void aFileThatBreaksOffIsSaidWithItsDetail() {
        MainActivity page = display.open(States.withModel());
        tap(page, R.id.import_data);
        choose(page, new InputStream() {
            @Override
            public int read() throws IOException {
                throw new IOException("the card was taken out");
            }
        });
        display.host.work();
        settle();
        assertEquals(page.getString(R.string.problem_file), said(page));
        tap(page, com.google.android.material.R.id.snackbar_action);
        String said = message(dialog());
        assertTrue(said, said.contains("the card was taken out"));
    }

    @Test
    public void whatIsNoZipIsSaid() {
        MainActivity page = display.open(States.joined());
        tap(page, R.id.import_zip);
        choose(page, new ByteArrayInputStream(new byte[10]));
        display.host.work();
        settle();
        assertEquals(page.getString(R.string.problem_not_bundle), said(page));
    }

    @Test
    public void theBarMovesWhereTheSizeIsNotKnown() {
        MainActivity page = display.open(States.joined());
        assertFalse(seen(page, R.id.import_progress));
        tap(page, R.id.import_zip);
        choose(page, new ByteArrayInputStream(new byte[10]));
        assertTrue(((LinearProgressIndicator) page.findViewById(R.id.import_progress)).isIndeterminate());
    }
}
