package org.fedspzo.app;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertNull;
import static org.junit.Assert.assertTrue;

import org.junit.Test;
import org.junit.runner.RunWith;

/** What the screen makes of what Python says. */
@RunWith(PhoneRunner.class)
public final class ScreenTest {
    private static Screen.Now now(String state) {
        return States.screen(state).now;
    }

    @Test
    public void eachStateIsToldFromTheOthers() {
        assertEquals(Screen.Now.READY, now("ready"));
        assertEquals(Screen.Now.CONNECTING, now("connecting"));
        assertEquals(Screen.Now.OFFLINE, now("offline"));
        assertEquals(Screen.Now.UNHEARD, now("unheard"));
        assertEquals(Screen.Now.NETWORK, now("waiting"));
        assertEquals(Screen.Now.CHARGER, now("waiting-charger"));
        assertEquals(Screen.Now.BATTERY, now("waiting-battery"));
        assertEquals(Screen.Now.HEAT, now("waiting-heat"));
        assertEquals(Screen.Now.FIRST, now("first"));
        assertEquals(Screen.Now.LEARNING, now("learning"));
        assertEquals(Screen.Now.PAUSED, now("paused"));
        assertEquals(Screen.Now.RESTING, now("resting"));
        assertEquals(Screen.Now.FINISHED, now("ended"));
        assertEquals(Screen.Now.STOPPED, now("error"));
        assertEquals(Screen.Now.DECLINED, now("declined"));
    }

    @Test
    public void runningAndWaitingAreAsPythonSaysThem() {
        for (String state : States.all().keySet()) {
            Screen screen = States.screen(state);
            assertEquals(state, screen.running, screen.now.running());
            assertTrue(state, screen.running || !screen.now.waiting());
        }
    }

    @Test
    public void setUpIsCompleteWithThreeSteps() {
        assertFalse(States.screen("step-examples").complete());
        assertTrue(States.screen("ready").complete());
    }

    @Test
    public void aStatusOfNothingIsANewcomers() {
        Screen screen = Screen.of(States.json("{}"));
        assertFalse(screen.joined);
        assertNull(screen.task);
        assertNull(screen.improvement);
        assertNull(screen.problem);
        assertTrue(Double.isNaN(screen.joules));
    }

    @Test
    public void whatGoesWrongIsSaidInTheOwnersWords() {
        assertEquals(R.string.problem_login, words("device.refused"));
        assertEquals(R.string.problem_offline, words("broker.no-answer"));
        assertEquals(R.string.problem_offline, words("broker.certificate-damaged"));
        assertEquals(R.string.problem_invitation, words("access.invitation"));
        assertEquals(R.string.problem_bundle, words("bundle.file-altered"));
        assertEquals(R.string.problem_not_bundle, words("bundle.not-a-zip"));
        assertEquals(R.string.problem_examples, words("data.missing-field"));
        assertEquals(R.string.problem_room, words("file.no-room"));
        assertEquals(R.string.problem_key, words("state.sealed"));
        assertEquals(R.string.problem_state, words("state.snapshot-damaged"));
        assertEquals(R.string.problem_engine, words("engine.load-failed"));
        assertEquals(R.string.problem_other, words("program"));
        assertEquals(R.string.problem_other, words(""));
    }

    @Test
    public void bytesStayWithTheirUnit() {
        assertEquals("5\u00a0B", Text.bytes(5));
        assertEquals("1.5\u00a0kB", Text.bytes(1500));
        assertEquals("60.0\u00a0MB", Text.bytes(60_000_000));
    }

    private static int words(String kind) {
        return new Problem(kind, "").words();
    }
}
