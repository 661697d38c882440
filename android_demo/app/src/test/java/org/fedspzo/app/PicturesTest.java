package org.fedspzo.app;

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
        Phone phone = new Phone(qualifiers, more, fontScale);
        Picture.check(name, phone.open(States.all().get(state)));
    }

    @Test
    public void newcomer() throws Exception {
        phone("newcomer", Phone.PHONE);
    }

    @Test
    public void stepModel() throws Exception {
        phone("step-model", Phone.PHONE);
    }

    @Test
    public void stepExamples() throws Exception {
        phone("step-examples", Phone.PHONE);
    }

    @Test
    public void ready() throws Exception {
        phone("ready", Phone.PHONE);
    }

    @Test
    public void waiting() throws Exception {
        phone("waiting", Phone.PHONE);
    }

    @Test
    public void learning() throws Exception {
        phone("learning", Phone.PHONE);
    }

    @Test
    public void better() throws Exception {
        phone("better", Phone.TALL);
    }

    @Test
    public void notBetter() throws Exception {
        phone("not-better", Phone.PHONE);
    }

    @Test
    public void ended() throws Exception {
        phone("ended", Phone.PHONE);
    }

    @Test
    public void offline() throws Exception {
        phone("offline", Phone.PHONE);
    }

    @Test
    public void error() throws Exception {
        phone("error", Phone.PHONE);
    }

    @Test
    public void settings() throws Exception {
        Picture.check("settings", new Phone(Phone.PHONE, "", 1).open(SettingsActivity.class, States.better()).get());
    }

    @Test
    public void dark() throws Exception {
        phone("better-dark", "better", Phone.TALL, "night", 1);
    }

    @Test
    public void darkNewcomer() throws Exception {
        phone("newcomer-dark", "newcomer", Phone.PHONE, "night", 1);
    }

    @Test
    public void german() throws Exception {
        phone("better-german", "better", Phone.TALL, "de", 1);
    }

    @Test
    public void largeLetters() throws Exception {
        phone("step-model-large", "step-model", Phone.TALL, "", 2);
        phone("better-large-german", "better", Phone.LARGE_TALL, "de", 2);
    }

    @Test
    public void tablet() throws Exception {
        phone("better-tablet", "better", Phone.TABLET, "", 1);
    }
}
