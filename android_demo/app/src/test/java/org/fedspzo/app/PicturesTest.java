package org.fedspzo.app;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertNotEquals;
import static org.robolectric.Shadows.shadowOf;

import android.graphics.Bitmap;
import android.widget.TextView;

import com.google.android.material.color.MaterialColors;

import org.junit.Test;
import org.junit.runner.RunWith;
import org.robolectric.RuntimeEnvironment;
import org.robolectric.annotation.GraphicsMode;

import java.util.ArrayList;
import java.util.List;

/** Every state as it is drawn; see {@link Picture}. */
@RunWith(PhoneRunner.class)
@GraphicsMode(GraphicsMode.Mode.NATIVE)
public final class PicturesTest {
    private static void phone(String name, String qualifiers) throws Exception {
        phone(name, name, qualifiers, "", 1);
    }

    private static void phone(String name, String state, String qualifiers, String more, float fontScale) throws Exception {
        Display display = new Display(qualifiers, more, fontScale);
        Picture.check(name, display.open(States.all().get(state)));
    }

    @Test
    public void newcomer() throws Exception {
        phone("newcomer", Display.PHONE);
    }

    @Test
    public void stepModel() throws Exception {
        phone("step-model", Display.PHONE);
    }

    @Test
    public void stepModelOffered() throws Exception {
        phone("step-model-offered", Display.PHONE);
    }

    @Test
    public void stepExamples() throws Exception {
        phone("step-examples", Display.PHONE);
    }

    @Test
    public void damaged() throws Exception {
        phone("damaged", Display.PHONE);
    }

    @Test
    public void waiting() throws Exception {
        phone("waiting", Display.PHONE);
    }

    @Test
    public void learning() throws Exception {
        phone("learning", Display.PHONE);
    }

    @Test
    public void better() throws Exception {
        phone("better", Display.TALL);
    }

    @Test
    public void notBetter() throws Exception {
        phone("not-better", Display.PHONE);
    }

    @Test
    public void ended() throws Exception {
        phone("ended", Display.PHONE);
    }

    @Test
    public void error() throws Exception {
        phone("error", Display.PHONE);
    }

    @Test
    public void settings() throws Exception {
        Picture.check("settings", new Display(Display.PHONE, "", 1).open(SettingsActivity.class, States.better()).get());
    }

    private static MainActivity answered(String qualifiers, String more) {
        Display display = new Display(qualifiers, more, 1);
        display.host.answer("predict", States.ANSWER);
        MainActivity page = display.open(States.better());
        Display.field(page).setText("play the new song");
        Display.tap(page, R.id.ask);
        return page;
    }

    @Test
    public void answered() throws Exception {
        Picture.check("answered", answered(Display.TALL, ""));
    }

    // One card in each of its states.

    private static void cards(String name, String more, int card, int columns, String... states) throws Exception {
        Display display = new Display(Display.TALL, more, 1);
        MainActivity page = display.open(States.newcomer());
        List<Bitmap> drawn = new ArrayList<>();
        for (String state : states) {
            display.host.status(States.all().get(state));
            page.refresh();
            Display.settle();
            drawn.add(Picture.draw(page.findViewById(card)));
        }
        Picture.check(name, drawn, columns,
                MaterialColors.getColor(page.findViewById(R.id.page), com.google.android.material.R.attr.colorSurface));
    }

    private static void now(String name, String more) throws Exception {
        cards(name, more, R.id.now, 3, "ready", "connecting", "offline", "unheard", "first", "learning", "waiting",
                "waiting-charger", "waiting-battery", "waiting-heat", "paused", "resting", "ended", "error", "declined");
    }

    @Test
    public void whatHappensNow() throws Exception {
        now("cards-now", "");
    }

    @Test
    public void whatHappensNowInGermanAtNight() throws Exception {
        now("cards-now-german-dark", "de-night");
    }

    @Test
    public void whetherItGetsBetter() throws Exception {
        cards("cards-improvement", "", R.id.improvement, 3, "ready", "few-held-back", "learning", "not-better", "worse",
                "loss-alone");
    }

    // Dialogs and snackbars.

    @Test
    public void invitation() throws Exception {
        MainActivity page = new Display(Display.PHONE, "", 1).open(States.newcomer());
        Display.tap(page, R.id.join);
        ((TextView) Display.dialog().findViewById(R.id.question_text)).setText(States.INVITATION);
        Picture.check("dialog-invitation", page, Display.dialog());
    }

    @Test
    public void join() throws Exception {
        Display display = new Display(Display.PHONE, "de", 1);
        MainActivity page = display.open(States.newcomer());
        Question.join(page.getSupportFragmentManager(), States.INVITATION,
                page.getString(R.string.join_confirm, "default", "phone-1", "mqtts://fed.example.org:8883"));
        Picture.check("dialog-join-german", page, Display.dialog());
    }

    @Test
    public void leave() throws Exception {
        SettingsActivity page = new Display(Display.PHONE, "night", 1).open(SettingsActivity.class, States.better()).get();
        Display.tap(page, R.id.leave);
        Picture.check("dialog-leave-dark", page, Display.dialog());
    }

    @Test
    public void detail() throws Exception {
        MainActivity page = new Display(Display.PHONE, "", 2).open(States.offline());
        Display.tap(page, R.id.detail);
        Picture.check("dialog-detail-large", page, Display.dialog());
    }

    @Test
    public void correct() throws Exception {
        MainActivity page = answered(Display.PHONE, "");
        Display.tap(page, R.id.correct);
        Picture.check("dialog-correct", page, Display.dialog());
    }

    @Test
    public void saidThatItIsNoted() throws Exception {
        MainActivity page = answered(Display.PHONE, "night");
        Display.tap(page, R.id.accept);
        Picture.check("snackbar-dark", page);
    }

    @Test
    public void saidWhatWentWrong() throws Exception {
        Display display = new Display(Display.PHONE, "de", 1);
        shadowOf(RuntimeEnvironment.getApplication()).grantPermissions("android.permission.POST_NOTIFICATIONS");
        MainActivity page = display.open(States.ready());
        display.host.answer("check_ready", "{\"error\": \"no room\", \"kind\": \"device.wrong-server-key\"}");
        Display.tap(page, R.id.start);
        Picture.check("snackbar-problem-german", page);
    }

    @Test
    public void downloading() throws Exception {
        Display display = new Display(Display.PHONE, "", 1);
        display.host.later("fetch_bundle");
        MainActivity page = display.open(States.downloading());
        Display.tap(page, R.id.download);
        Picture.check("downloading", page);
    }

    @Test
    public void nothingWritten() throws Exception {
        MainActivity page = new Display(Display.TALL, "", 1).open(States.ready());
        Display.tap(page, R.id.add);
        Picture.check("nothing-written", page);
    }

    @Test
    public void dark() throws Exception {
        phone("better-dark", "better", Display.TALL, "night", 1);
    }

    @Test
    public void darkNewcomer() throws Exception {
        phone("newcomer-dark", "newcomer", Display.PHONE, "night", 1);
    }

    @Test
    public void german() throws Exception {
        phone("better-german", "better", Display.TALL, "de", 1);
    }

    @Test
    public void largeLetters() throws Exception {
        phone("step-model-large", "step-model", Display.TALL, "", 2);
        phone("better-large-german", "better", Display.LARGE_TALL, "de", 2);
    }

    @Test
    public void aDigitThatIsAnotherIsSeen() throws Exception {
        MainActivity page = new Display(Display.PHONE, "", 1).open(States.learning());
        assertEquals("", Picture.difference("learning", page));
        ((TextView) page.findViewById(R.id.state)).setText(page.getString(R.string.now_learning_of, 13, 40));
        Display.settle();
        assertNotEquals("", Picture.difference("learning", page));
    }

    @Test
    public void tablet() throws Exception {
        phone("better-tablet", "better", Display.TABLET, "", 1);
    }
}
