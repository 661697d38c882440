package org.fedspzo.app;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertNotEquals;

import android.widget.TextView;

import org.junit.Test;
import org.junit.runner.RunWith;
import org.robolectric.annotation.GraphicsMode;

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
    public void ready() throws Exception {
        phone("ready", Display.PHONE);
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
    public void offline() throws Exception {
        phone("offline", Display.PHONE);
    }

    @Test
    public void error() throws Exception {
        phone("error", Display.PHONE);
    }

    @Test
    public void settings() throws Exception {
        Picture.check("settings", new Display(Display.PHONE, "", 1).open(SettingsActivity.class, States.better()).get());
    }

    @Test
    public void answered() throws Exception {
        Display display = new Display(Display.TALL, "", 1);
        display.host.answer("predict", States.ANSWER);
        MainActivity page = display.open(States.better());
        ((TextView) page.findViewById(R.id.fields).findViewWithTag("text")).setText("play the new song");
        Display.tap(page, R.id.ask);
        Picture.check("answered", page);
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
        ((TextView) page.findViewById(R.id.state)).setText(page.getString(R.string.now_learning, 13));
        Display.settle();
        assertNotEquals("", Picture.difference("learning", page));
    }

    @Test
    public void tablet() throws Exception {
        phone("better-tablet", "better", Display.TABLET, "", 1);
    }
}
