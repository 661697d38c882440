package org.fedspzo.app;

import static org.fedspzo.app.Display.seen;
import static org.fedspzo.app.Display.settle;
import static org.fedspzo.app.Display.tap;
import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertNotNull;
import static org.junit.Assert.assertTrue;
import static org.robolectric.Shadows.shadowOf;

import android.app.Activity;
import android.app.Dialog;
import android.content.Intent;
import android.net.Uri;
import android.view.Menu;
import android.widget.CompoundButton;
import android.widget.EditText;
import android.widget.ListView;
import android.widget.TextView;

import androidx.appcompat.app.AlertDialog;

import com.google.android.material.appbar.MaterialToolbar;
import com.google.android.material.progressindicator.LinearProgressIndicator;

import org.junit.Test;
import org.junit.runner.RunWith;
import org.robolectric.RuntimeEnvironment;
import org.robolectric.android.controller.ActivityController;
import org.robolectric.shadows.ShadowActivity;
import org.robolectric.shadows.ShadowDialog;

import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.io.InputStream;

/** What is on the pages, and what taps do; with Python's part played. */
@RunWith(PhoneRunner.class)
public final class PageTest {
    private static final int SAID = com.google.android.material.R.id.snackbar_text,
            ACTION = com.google.android.material.R.id.snackbar_action;
    private static final int[] STEPS = {R.id.join, R.id.import_zip, R.id.import_data};

    private final Display display = Display.plain();

    private static String text(Activity page, int id) {
        return ((TextView) page.findViewById(id)).getText().toString();
    }

    private static EditText field(Activity page) {
        return page.findViewById(R.id.fields).findViewWithTag("text");
    }

    private String last() {
        return display.host.asked.get(display.host.asked.size() - 1);
    }

    private static AlertDialog dialog() {
        settle();
        Dialog found = ShadowDialog.getLatestDialog();
        assertNotNull(found);
        assertTrue(found.isShowing());
        return (AlertDialog) found;
    }

    private static void agree(AlertDialog dialog) {
        dialog.getButton(AlertDialog.BUTTON_POSITIVE).performClick();
        settle();
    }

    // Set-up.

    @Test
    public void aNewcomerSeesTheFirstStepAlone() {
        MainActivity page = display.open(States.newcomer());
        assertTrue(seen(page, R.id.setup));
        for (int card : new int[] {R.id.now, R.id.improvement, R.id.costs, R.id.trial, R.id.importing, R.id.settings}) {
            assertFalse(page.getResources().getResourceEntryName(card), seen(page, card));
        }
        assertFalse(((MaterialToolbar) page.findViewById(R.id.toolbar)).getMenu().hasVisibleItems());
    }

    @Test
    public void eachStepHasItsButtonsWhenItIsNext() {
        String[] states = {States.newcomer(), States.joined(), States.withModel()};
        MainActivity page = display.open(states[0]);
        for (int next = 0; next < states.length; next++) {
            display.host.status(states[next]);
            page.refresh();
            for (int step = 0; step < STEPS.length; step++) {
                assertEquals(next == step, seen(page, STEPS[step]));
            }
            assertEquals(page.getString(R.string.setup_state, next), text(page, R.id.setup_state));
        }
        display.host.status(States.ready());
        page.refresh();
        assertFalse(seen(page, R.id.setup));
        assertTrue(seen(page, R.id.now));
    }

    @Test
    public void theFirstExamplesCanBeWritten() {
        MainActivity page = display.open(States.withModel());
        assertFalse(seen(page, R.id.trial));
        tap(page, R.id.write);
        assertTrue(seen(page, R.id.trial));
        field(page).setText("wake me at six");
        ((TextView) page.findViewById(R.id.label)).setText("alarm");
        tap(page, R.id.add);
        assertEquals("add_example[{\"text\":\"wake me at six\",\"label\":\"alarm\"}]", last());
        assertEquals(page.getString(R.string.added), text(page, SAID));
        assertEquals("", field(page).getText().toString());
    }

    @Test
    public void anInvitationIsPastedAndShownBeforeItCounts() {
        display.host.answer("describe_invitation", "{\"device\": \"phone-1\", \"job\": \"default\", \"broker\": \"mqtts://b\"}");
        MainActivity page = display.open(States.newcomer());
        tap(page, R.id.join);
        AlertDialog asked = dialog();
        ((EditText) asked.findViewById(R.id.question_text)).setText("fedspzo:abc");
        agree(asked);
        assertEquals("describe_invitation[fedspzo:abc]", last());
        AlertDialog shown = dialog();
        String question = ((TextView) shown.findViewById(android.R.id.message)).getText().toString();
        assertTrue(question, question.contains("phone-1") && question.contains("mqtts://b"));
        agree(shown);
        assertEquals("enrol[fedspzo:abc]", last());
    }

    @Test
    public void aLostKeyIsSaidInSetUpAndCanBeLeft() {
        MainActivity page = display.open(States.all().get("damaged"));
        assertEquals(page.getString(R.string.problem_key), text(page, R.id.setup_problem));
        tap(page, R.id.setup_detail);
        assertTrue(((TextView) dialog().findViewById(android.R.id.message)).getText().toString().contains("unsealed"));
        assertTrue(menu(page).findItem(R.id.settings).isVisible());
    }

    private static Menu menu(Activity page) {
        return ((MaterialToolbar) page.findViewById(R.id.toolbar)).getMenu();
    }

    // What happens now.

    @Test
    public void thereIsOneThingToDoInEachState() {
        MainActivity page = display.open(States.newcomer());
        for (String name : States.all().keySet()) {
            display.host.status(States.all().get(name));
            page.refresh();
            Screen screen = States.screen(name);
            boolean start = screen.complete() && !screen.running && !screen.finished;
            assertEquals(name, start, seen(page, R.id.start));
            assertEquals(name, screen.complete() && screen.running, seen(page, R.id.pause));
            assertTrue(name, !screen.complete() || !text(page, R.id.state).isEmpty());
            assertTrue(name, !screen.complete() || !text(page, R.id.message).isEmpty());
        }
    }

    @Test
    public void startStartsTheServiceWhatMissesOrNot() {
        shadowOf(RuntimeEnvironment.getApplication()).grantPermissions("android.permission.POST_NOTIFICATIONS");
        MainActivity page = display.open(States.ready());
        tap(page, R.id.start);
        assertEquals("check_ready[]", last());
        Intent started = shadowOf(RuntimeEnvironment.getApplication()).getNextStartedService();
        assertEquals(TrainingService.class.getName(), started.getComponent().getClassName());
        display.host.answer("check_ready", "{\"error\": \"there is no bundle\", \"kind\": \"device.no-bundle\"}");
        tap(page, R.id.start);
        assertEquals(page.getString(R.string.problem_not_bundle), text(page, SAID));
    }

    @Test
    public void pausePauses() {
        MainActivity page = display.open(States.learning());
        tap(page, R.id.pause);
        assertTrue(display.host.asked.toString(), display.host.asked.contains("pause[]"));
    }

    @Test
    public void theOperatorsDetailIsBehindATap() {
        MainActivity page = display.open(States.offline());
        assertFalse(text(page, R.id.message).contains("mqtts"));
        tap(page, R.id.detail);
        String said = ((TextView) dialog().findViewById(android.R.id.message)).getText().toString();
        assertTrue(said, said.contains("Connection refused") && said.contains("broker.no-answer"));
    }

    // Whether it gets better.

    @Test
    public void theVerdictComesWithItsFigures() {
        MainActivity page = display.open(States.better());
        assertEquals(page.getString(R.string.verdict_better), text(page, R.id.verdict));
        assertEquals(page.getString(R.string.verdict_text_right, 72, 49, 200), text(page, R.id.verdict_text));
        assertTrue(seen(page, R.id.chart));
        assertEquals(text(page, R.id.verdict_text), page.findViewById(R.id.chart).getContentDescription());
        display.host.status(States.notBetter());
        page.refresh();
        assertEquals(page.getString(R.string.verdict_same), text(page, R.id.verdict));
        display.host.status(States.with(States.ready(), "improvement",
                States.json("{'measure': 'right', 'examples': 4, 'fewest': 20, 'verdict': '', 'points': [], 'smooth': []}")));
        page.refresh();
        assertEquals(page.getString(R.string.verdict_few_text, 4, 20, 80), text(page, R.id.verdict_text));
        assertFalse(seen(page, R.id.chart));
        display.host.status(States.with(States.better(), "improvement", States.json("{'measure': 'loss', 'examples': 50,"
                + " 'fewest': 20, 'verdict': 'worse', 'points': [[0, 1.4], [3, 1.5]], 'smooth': [[0, 1.4], [3, 1.5]]}")));
        page.refresh();
        assertEquals(page.getString(R.string.verdict_text_loss, "1.50", "1.40", 50), text(page, R.id.verdict_text));
    }

    // Try it, teach it.

    private MainActivity asked() {
        display.host.answer("predict", States.ANSWER);
        MainActivity page = display.open(States.better());
        field(page).setText("play a song");
        tap(page, R.id.ask);
        return page;
    }

    @Test
    public void theAnswerIsShownAndReactedToOnce() {
        MainActivity page = asked();
        assertEquals("predict[{\"text\":\"play a song\"}, 0.0]", last());
        assertEquals("Suggestion: music\nmusic: 61 %\nalarm: 30 %\ncall: 6 %", text(page, R.id.answer));
        tap(page, R.id.accept);
        assertTrue(display.host.asked.toString(), display.host.asked.contains("react[true, ]"));
        assertFalse(seen(page, R.id.reactions));
        assertEquals(page.getString(R.string.reacted), text(page, SAID));
    }

    @Test
    public void whatIsWrongIsSaidOrCorrected() {
        MainActivity page = asked();
        tap(page, R.id.reject);
        assertTrue(display.host.asked.contains("react[false, ]"));
        tap(page, R.id.ask);
        tap(page, R.id.correct);
        ListView labels = dialog().getListView();
        assertEquals(4, labels.getCount());
        shadowOf(labels).performItemClick(2);
        settle();
        assertTrue(display.host.asked.toString(), display.host.asked.contains("react[false, call]"));
    }

    @Test
    public void aReactionThatFailsCanBeGivenAgain() {
        MainActivity page = asked();
        display.host.answer("react", "{\"error\": \"no room\", \"kind\": \"data.unwritable\"}");
        tap(page, R.id.accept);
        assertTrue(seen(page, R.id.reactions));
    }

    @Test
    public void anyLabelIsSuggestedWhereThePersonAgrees() {
        MainActivity page = asked();
        tap(page, R.id.explore);
        tap(page, R.id.ask);
        assertEquals("predict[{\"text\":\"play a song\"}, 0.05]", last());
    }

    @Test
    public void anEmptyFieldIsSaidWhereItIs() {
        MainActivity page = display.open(States.ready());
        tap(page, R.id.ask);
        tap(page, R.id.add);
        assertTrue(display.host.asked.toString(), display.host.asked.isEmpty());
        com.google.android.material.textfield.TextInputLayout box = page.findViewById(R.id.label_box);
        assertEquals(page.getString(R.string.choose_first), String.valueOf(box.getError()));
    }

    @Test
    public void aTaskOfTextsTakesATypedAnswer() {
        MainActivity page = display.open(States.with(States.ready(), "task",
                States.json("{'name': 'sums', 'fields': ['text'], 'labels': [], 'target': 'answer'}")));
        assertFalse(seen(page, R.id.label_box));
        assertFalse(seen(page, R.id.explore));
        field(page).setText("two and two");
        ((EditText) page.findViewById(R.id.reference)).setText("four");
        tap(page, R.id.add);
        assertEquals("add_example[{\"text\":\"two and two\",\"answer\":\"four\"}]", last());
    }

    // The screen is turned.

    @Test
    public void whatIsTypedChosenAndAnsweredStaysWhenTheScreenIsTurned() {
        display.host.answer("predict", States.ANSWER);
        ActivityController<MainActivity> controller = display.open(MainActivity.class, States.better());
        MainActivity page = controller.get();
        field(page).setText("half a sentence");
        ((TextView) page.findViewById(R.id.label)).setText("call");
        tap(page, R.id.explore);
        tap(page, R.id.ask);
        page = turned(controller);
        assertEquals("half a sentence", field(page).getText().toString());
        assertEquals("call", text(page, R.id.label));
        assertTrue(((CompoundButton) page.findViewById(R.id.explore)).isChecked());
        assertTrue(text(page, R.id.answer), text(page, R.id.answer).contains("music: 61 %"));
        assertTrue(seen(page, R.id.reactions));
    }

    @Test
    public void dialogsStayWhenTheScreenIsTurned() {
        ActivityController<MainActivity> controller = display.open(MainActivity.class, States.newcomer());
        tap(controller.get(), R.id.join);
        ((EditText) dialog().findViewById(R.id.question_text)).setText("fedspzo:abc");
        turned(controller);
        AlertDialog asked = dialog();
        assertEquals("fedspzo:abc", ((TextView) asked.findViewById(R.id.question_text)).getText().toString());
        agree(asked);
        assertEquals("describe_invitation[fedspzo:abc]", last());
    }

    private static MainActivity turned(ActivityController<MainActivity> controller) {
        RuntimeEnvironment.setQualifiers("+w914dp-h411dp-land");
        controller.recreate();
        settle();
        return controller.get();
    }

    // Imports.

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
        assertTrue(last(), last().startsWith("import_examples["));
        assertFalse(seen(page, R.id.importing));
        assertEquals("12 examples were added.", text(page, SAID));
    }

    @Test
    public void anImportGoesOnWhenTheScreenIsTurned() {
        display.host.answer("import_bundle", "{}");
        ActivityController<MainActivity> controller = display.open(MainActivity.class, States.joined());
        tap(controller.get(), R.id.import_zip);
        choose(controller.get(), new ByteArrayInputStream(new byte[10]));
        MainActivity page = turned(controller);
        assertTrue(seen(page, R.id.importing));
        display.host.work();
        settle();
        assertFalse(seen(page, R.id.importing));
        assertEquals(page.getString(R.string.imported_bundle), text(page, SAID));
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
        assertEquals(page.getString(R.string.import_cancelled), text(page, SAID));
        assertFalse(new java.io.File(page.getNoBackupFilesDir(), "chosen").exists());
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
        assertEquals(page.getString(R.string.problem_file), text(page, SAID));
        tap(page, ACTION);
        String said = ((TextView) dialog().findViewById(android.R.id.message)).getText().toString();
        assertTrue(said, said.contains("the card was taken out"));
    }

    @Test
    public void theBarMovesWhereTheSizeIsNotKnown() {
        MainActivity page = display.open(States.joined());
        assertFalse(seen(page, R.id.import_progress));
        tap(page, R.id.import_zip);
        choose(page, new ByteArrayInputStream(new byte[10]));
        assertTrue(((LinearProgressIndicator) page.findViewById(R.id.import_progress)).isIndeterminate());
    }

    // Settings.

    @Test
    public void settingsAreApartAndKept() {
        MainActivity first = display.open(States.better());
        menu(first).performIdentifierAction(R.id.settings, 0);
        Intent next = shadowOf(first).getNextStartedActivity();
        assertEquals(SettingsActivity.class.getName(), next.getComponent().getClassName());
        SettingsActivity page = display.open(SettingsActivity.class, States.better()).get();
        assertTrue(((CompoundButton) page.findViewById(R.id.only_unmetered)).isChecked());
        tap(page, R.id.only_charging);
        assertEquals("set_limits[{\"charging\":true,\"unmetered\":true}]", last());
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

    @Test
    public void germanPhonesGetGerman() {
        MainActivity page = new Display(Display.TALL, "de", 1).open(States.better());
        assertEquals("Lernt: Runde 34", text(page, R.id.state));
        assertEquals("36,0 kB gesendet, 43,9 kB empfangen", text(page, R.id.traffic));
    }
}
