package org.fedspzo.app;

import org.json.JSONException;
import org.json.JSONObject;
import org.robolectric.RuntimeEnvironment;
import org.robolectric.util.ReflectionHelpers;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;

/** In Python's place: gives a status that a test sets, and takes down what is asked. All at once, on the main thread. */
final class FakeHost extends Host {
    /** Commands with their arguments, in order. */
    final List<String> asked = new ArrayList<>();
    private final Map<String, JSONObject> answers = new HashMap<>();
    private JSONObject status = new JSONObject();
    /** Work in the background, which is done by {@link #work}. */
    private final List<Runnable> waiting = new ArrayList<>();
    private final Set<String> slow = new HashSet<>();

    private FakeHost() {
        super(RuntimeEnvironment.getApplication());
    }

    static FakeHost install() {
        FakeHost host = new FakeHost();
        ReflectionHelpers.setStaticField(Host.class, "only", host);
        return host;
    }

    FakeHost status(String json) {
        try {
            status = new JSONObject(json);
        } catch (JSONException error) {
            throw new IllegalArgumentException(json, error);
        }
        return this;
    }

    /** Answer a command with this, from now on. */
    FakeHost answer(String command, String json) {
        try {
            answers.put(command, new JSONObject(json));
        } catch (JSONException error) {
            throw new IllegalArgumentException(json, error);
        }
        return this;
    }

    String last() {
        return asked.get(asked.size() - 1);
    }

    void work() {
        List<Runnable> now = new ArrayList<>(waiting);
        waiting.clear();
        now.forEach(Runnable::run);
    }

    /** Have a command take until {@link #work}, from now on. */
    FakeHost later(String command) {
        slow.add(command);
        return this;
    }

    @Override
    void command(Answer answer, String name, Object... arguments) {
        if (slow.contains(name)) {
            waiting.add(() -> answer(answer, name, arguments));
        } else {
            answer(answer, name, arguments);
        }
    }

    @Override
    void beside(String name) {
        asked.add(name);
    }

    @Override
    void background(Runnable work) {
        waiting.add(work);
    }

    @Override
    void answer(Answer answer, String name, Object... arguments) {
        asked.add(name + Arrays.toString(arguments));
        answer.take(answers.getOrDefault(name, new JSONObject()));
    }

    @Override
    void status(Answer answer) {
        answer.take(status);
    }
}
