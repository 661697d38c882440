package org.fedspzo.app;

import static org.fedspzo.app.Display.agree;
import static org.fedspzo.app.Display.dialog;
import static org.fedspzo.app.Display.field;
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

import android.widget.CompoundButton;
import android.widget.EditText;
import android.widget.LinearLayout;
import android.widget.ListView;
import android.widget.TextView;

import androidx.appcompat.app.AlertDialog;

import com.google.android.material.textfield.TextInputLayout;

import org.junit.Test;
import org.junit.runner.RunWith;
import org.robolectric.android.controller.ActivityController;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/** The form to ask the model and to teach it, also while the screen is turned. */
@RunWith(PhoneRunner.class)
public final class TrialTest {
    private final Display display = Display.plain();

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
        assertEquals("predict[{\"text\":\"play a song\"}, 0.0]", display.host.last());
        assertEquals("Suggestion: music\nmusic: 61 %\nalarm: 30 %\ncall: 6 %", text(page, R.id.answer));
        tap(page, R.id.accept);
        assertTrue(display.host.asked.toString(), display.host.asked.contains("react[true, ]"));
        assertFalse(seen(page, R.id.reactions));
        assertEquals(page.getString(R.string.reacted), said(page));
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
        assertEquals("predict[{\"text\":\"play a song\"}, 0.05]", display.host.last());
    }

    @Test
    public void anEmptyFieldIsSaidWhereItIs() {
        MainActivity page = display.open(States.ready());
        tap(page, R.id.ask);
        tap(page, R.id.add);
        assertTrue(display.host.asked.toString(), display.host.asked.isEmpty());
        TextInputLayout box = page.findViewById(R.id.label_box);
        assertEquals(page.getString(R.string.choose_first), String.valueOf(box.getError()));
    }

    @Test
    public void fieldsAreCalledAsTheOwnerWouldCallThem() {
        MainActivity page = display.open(States.with(States.ready(), "task", States.json("{'name': 'wic', 'fields': ['sentence1',"
                + " 'sentence2', 'word', 'shoe_size'], 'labels': ['same', 'different'], 'target': 'label'}")));
        List<String> called = new ArrayList<>();
        LinearLayout fields = page.findViewById(R.id.fields);
        for (int i = 0; i < fields.getChildCount(); i++) {
            called.add(String.valueOf(((TextInputLayout) fields.getChildAt(i)).getHint()));
        }
        assertEquals("the last is of a task of the group's own",
                Arrays.asList("First sentence", "Second sentence", "Word in both sentences", "shoe_size"), called);
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
        assertEquals("add_example[{\"text\":\"two and two\",\"answer\":\"four\"}]", display.host.last());
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
        assertEquals("describe_invitation[fedspzo:abc]", display.host.last());
    }
}
