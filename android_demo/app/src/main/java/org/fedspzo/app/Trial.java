package org.fedspzo.app;

import androidx.lifecycle.ViewModel;

import org.json.JSONObject;

/** What the model was asked last, kept while the screen is turned; public for the ViewModelProvider. */
public final class Trial extends ViewModel {
    /** The answer of Python, or null. */
    JSONObject answer;
    /** Whether the model is at work on it. */
    boolean asking;
    /** Whether the person may still say what they think of it. */
    boolean reactable;
    private Runnable listener = () -> {};

    /** Tell of changes, until another is told. */
    void listen(Runnable listener) {
        this.listener = listener;
    }

    void asked() {
        answer = null;
        asking = true;
        reactable = false;
        listener.run();
    }

    void answered(JSONObject found) {
        answer = found;
        asking = false;
        reactable = found.has("shown");
        listener.run();
    }

    void reactable(boolean may) {
        reactable = may;
        listener.run();
    }
}
