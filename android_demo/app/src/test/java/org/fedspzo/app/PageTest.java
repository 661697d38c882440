package org.fedspzo.app;

import static org.fedspzo.app.Display.agree;
import static org.fedspzo.app.Display.dialog;
import static org.fedspzo.app.Display.field;
import static org.fedspzo.app.Display.menu;
import static org.fedspzo.app.Display.message;
import static org.fedspzo.app.Display.said;
import static org.fedspzo.app.Display.seen;
import static org.fedspzo.app.Display.tap;
import static org.fedspzo.app.Display.text;
import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertTrue;
import static org.robolectric.Shadows.shadowOf;

import android.content.Intent;
import android.widget.EditText;
import android.widget.TextView;

import androidx.appcompat.app.AlertDialog;

import org.json.JSONObject;
import org.junit.Test;
import org.junit.runner.RunWith;
import org.robolectric.RuntimeEnvironment;

/** What the first page shows, and what taps do; with Python's part played. */
@RunWith(PhoneRunner.class)
public final class PageTest {
    private static final int[] STEPS = {R.id.join, R.id.import_zip, R.id.import_data};

    private final Display display = Display.plain();

    // Set-up.

    @Test
    public void aNewcomerSeesTheFirstStepAlone() {
        MainActivity page = display.open(States.newcomer());
        assertTrue(seen(page, R.id.setup));
        for (int card : new int[] {R.id.now, R.id.improvement, R.id.costs, R.id.trial, R.id.importing, R.id.settings}) {
            assertFalse(page.getResources().getResourceEntryName(card), seen(page, card));
        }
        assertFalse(menu(page).hasVisibleItems());
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
        assertEquals("add_example[{\"text\":\"wake me at six\",\"label\":\"alarm\"}]", display.host.last());
        assertEquals(page.getString(R.string.added), said(page));
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
        assertEquals("describe_invitation[fedspzo:abc]", display.host.last());
        AlertDialog shown = dialog();
        String question = message(shown);
        assertTrue(question, question.contains("phone-1") && question.contains("mqtts://b"));
        agree(shown);
        assertEquals("enrol[fedspzo:abc]", display.host.last());
    }

    @Test
    public void aLostKeyIsSaidInSetUpAndCanBeLeft() {
        MainActivity page = display.open(States.all().get("damaged"));
        assertEquals(page.getString(R.string.problem_key), text(page, R.id.setup_problem));
        tap(page, R.id.setup_detail);
        assertTrue(message(dialog()).contains("unsealed"));
        assertTrue(menu(page).findItem(R.id.settings).isVisible());
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
        assertEquals("check_ready[]", display.host.last());
        Intent started = shadowOf(RuntimeEnvironment.getApplication()).getNextStartedService();
        assertEquals(TrainingService.class.getName(), started.getComponent().getClassName());
        display.host.answer("check_ready", "{\"error\": \"there is no bundle\", \"kind\": \"device.no-bundle\"}");
        tap(page, R.id.start);
        assertEquals(page.getString(R.string.problem_not_bundle), said(page));
    }

    @Test
    public void aPhoneThatIsRefusedIsAskedForAnInvitation() {
        MainActivity page = display.open(States.error());
        assertEquals(page.getString(R.string.new_invitation), text(page, R.id.start));
        tap(page, R.id.start);
        assertTrue(dialog().findViewById(R.id.question_text) != null);
    }

    @Test
    public void joulesSayHowManyRoundsTheyAreOf() {
        MainActivity page = display.open(States.with(States.learning(), "joules_rounds", 7));
        assertEquals(page.getString(R.string.energy_of, "31.4", 7, 11), text(page, R.id.energy));
        display.host.status(States.with(States.learning(), "joules", JSONObject.NULL, "charging", true));
        page.refresh();
        assertEquals(page.getString(R.string.energy_charging), text(page, R.id.energy));
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
        String said = message(dialog());
        assertTrue(said, said.contains("Connection refused") && said.contains("broker.no-answer"));
    }

    @Test
    public void aProblemThatIsOverIsNotShown() {
        MainActivity page = display.open(States.message(States.learning(), "broker.no-answer", "does not answer"));
        assertEquals(page.getString(R.string.now_learning_of, 12, 40), text(page, R.id.state));
        assertFalse(seen(page, R.id.detail));
    }

    @Test
    public void anAppWithoutPythonSaysSo() {
        MainActivity page = display.open("{\"error\": \"UnsatisfiedLinkError: libpython\", \"kind\": \"program\"}");
        assertEquals(page.getString(R.string.problem_other), said(page));
        tap(page, com.google.android.material.R.id.snackbar_action);
        assertTrue(message(dialog()).contains("libpython"));
        display.host.status(States.newcomer());
        page.refresh();
        assertTrue(seen(page, R.id.setup));
    }

    @Test
    public void theRoundsThatThereAreAreSaidWhereTheServerTells() {
        MainActivity page = display.open(States.learning());
        assertEquals("Learning: round 12 of 40", text(page, R.id.state));
        display.host.status(States.with(States.learning(), "round", 40));
        page.refresh();
        assertEquals("before the server says that it is over", "Learning: round 40 of 40", text(page, R.id.state));
        display.host.status(States.with(States.learning(), "rounds", 0));
        page.refresh();
        assertEquals("Learning: round 12", text(page, R.id.state));
    }

    // Whether it gets better.

    @Test
    public void theVerdictComesWithItsFigures() {
        MainActivity page = display.open(States.better());
        assertEquals(page.getString(R.string.verdict_better), text(page, R.id.verdict));
        assertEquals("72 % of the answers are right now, 49 % at the start.\nError 0.85 now, 1.31 at the start.\n"
                + "Measured on 200 examples that it never learns from.", text(page, R.id.verdict_text));
        assertEquals("Chart of right answers: 49 % in round 0, 72 % in round 30", described(page, R.id.chart_right));
        assertEquals("Chart of error (less is better): 1.31 in round 0, 0.85 in round 30", described(page, R.id.chart_loss));
        display.host.status(States.notBetter());
        page.refresh();
        assertEquals(page.getString(R.string.verdict_same), text(page, R.id.verdict));
        display.host.status(States.all().get("few-held-back"));
        page.refresh();
        assertEquals(page.getString(R.string.verdict_few_text, 4, 20, 80), text(page, R.id.verdict_text));
        assertFalse(seen(page, R.id.chart_right) || seen(page, R.id.chart_loss));
        display.host.status(States.learning());
        page.refresh();
        assertEquals("49 % of the answers are right at the start.\nError 1.31 at the start.\n"
                + "Measured on 200 examples that it never learns from.", text(page, R.id.verdict_text));
        assertFalse(seen(page, R.id.chart_right) || seen(page, R.id.chart_loss));
    }

    private static String described(MainActivity page, int chart) {
        assertTrue(seen(page, chart));
        return page.findViewById(chart).getContentDescription().toString();
    }

    @Test
    public void aTaskWithoutRightAnswersShowsItsErrorAlone() {
        MainActivity page = display.open(States.lossAlone());
        assertEquals("Error 2.31 now, 2.85 at the start.\nMeasured on 50 examples that it never learns from.",
                text(page, R.id.verdict_text));
        assertFalse(seen(page, R.id.chart_right));
        assertEquals("Chart of error (less is better): 2.85 in round 0, 2.31 in round 12", described(page, R.id.chart_loss));
    }

    @Test
    public void aModelThatGotWorseIsSaidToHave() {
        MainActivity page = display.open(States.better());
        assertFalse(seen(page, R.id.verdict_advice));
        display.host.status(States.worse());
        page.refresh();
        assertEquals("It got worse", text(page, R.id.verdict));
        assertEquals(page.getString(R.string.worse_text), text(page, R.id.verdict_advice));
        display.host.status(States.all().get("worse-end"));
        page.refresh();
        assertEquals("no round comes that could mend it", page.getString(R.string.worse_end_text),
                text(page, R.id.verdict_advice));
    }

    @Test
    public void germanPhonesGetGerman() {
        MainActivity page = new Display(Display.TALL, "de", 1).open(States.better());
        assertEquals("Lernt: Runde 34 von 40", text(page, R.id.state));
        assertEquals("36,0\u00a0kB gesendet, 43,9\u00a0kB empfangen", text(page, R.id.traffic));
    }
}
