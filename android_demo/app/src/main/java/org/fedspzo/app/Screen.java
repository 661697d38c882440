package org.fedspzo.app;

import org.json.JSONArray;
import org.json.JSONObject;

import java.util.ArrayList;
import java.util.Collections;
import java.util.List;

/** All that the screen shows, as plain values that do not change; made of what Python says. */
final class Screen {
    /** What happens now. */
    enum Now {
        READY, RESTING, CONNECTING, OFFLINE, UNHEARD, NETWORK, CHARGER, BATTERY, HEAT, FIRST, LEARNING, PAUSED, FINISHED, STOPPED,
        DECLINED;

        /** Whether the phone takes part, or would as soon as it may. */
        boolean running() {
            return compareTo(CONNECTING) >= 0 && compareTo(LEARNING) <= 0 || this == DECLINED;
        }

        /** Whether a problem is what it is about; otherwise one that there was is over. */
        boolean troubled() {
            return this == OFFLINE || this == UNHEARD || this == STOPPED || this == DECLINED;
        }

        /** Whether it waits for something that comes by itself. */
        boolean waiting() {
            return running() && this != LEARNING && this != DECLINED;
        }
    }

    /** What the model is asked. */
    static final class Task {
        final String name, target;
        final List<String> fields, labels;

        Task(JSONObject task) {
            name = task.optString("name");
            target = task.optString("target");
            fields = strings(task.optJSONArray("fields"));
            labels = strings(task.optJSONArray("labels"));
        }

        boolean sameAs(Task other) {
            return other != null && fields.equals(other.fields) && labels.equals(other.labels) && target.equals(other.target);
        }
    }

    /** How one thing that is measured goes, over the rounds. */
    static final class Course {
        /** Whether right answers are counted, as a share; else the values are losses. */
        final boolean counts;
        final double[] rounds, values, smooth;

        Course(JSONObject found, boolean counts) {
            this.counts = counts;
            rounds = column(found.optJSONArray("points"), 0);
            values = column(found.optJSONArray("points"), 1);
            smooth = column(found.optJSONArray("smooth"), 1);
        }

        double first() {
            return values[0];
        }

        double last() {
            return values[values.length - 1];
        }
    }

    /** Whether the model gets better on examples that the phone holds back. */
    static final class Improvement {
        final int examples, fewest;
        /** "better", "worse", "same", or "" before there is something to compare. */
        final String verdict;
        /** Of right answers; null where the task does not count them. */
        final Course right;
        final Course loss;

        Improvement(JSONObject found) {
            examples = found.optInt("examples");
            fewest = found.optInt("fewest");
            verdict = found.optString("verdict");
            JSONObject courses = found.optJSONObject("courses");
            right = courses.isNull("right") ? null : new Course(courses.optJSONObject("right"), true);
            loss = new Course(courses.optJSONObject("loss"), false);
        }
    }

    final boolean joined, offersBundle, running, finished, charging, onlyCharging, onlyUnmetered;
    final String device, job, broker, answer;
    final Task task;
    final int examples, round, helped;
    /** Rounds whose joules are known. */
    final int measured;
    /** How many the job has at most; 0 where the server has not said so. */
    final int rounds;
    final Now now;
    final Problem problem;
    final Improvement improvement;
    final long bytesUp, bytesDown;
    /** Joules and °C; NaN where nobody measures them. */
    final double joules, temperature, battery, leastBattery, highestTemperature;

    private Screen(JSONObject status) {
        device = status.optString("device");
        job = status.optString("job");
        broker = status.optString("broker");
        joined = !broker.isEmpty();
        offersBundle = status.optBoolean("offers_bundle");
        running = status.optBoolean("running");
        finished = status.optBoolean("finished");
        task = status.isNull("task") ? null : new Task(status.optJSONObject("task"));
        examples = status.optInt("examples");
        round = status.optInt("round");
        rounds = status.optInt("rounds");
        answer = status.optString("answer");
        JSONArray losses = status.optJSONArray("losses");
        helped = losses == null ? 0 : losses.length();
        problem = status.optString("message").isEmpty()
                ? null : new Problem(status.optString("kind"), status.optString("message"));
        improvement = status.isNull("improvement") ? null : new Improvement(status.optJSONObject("improvement"));
        bytesUp = status.optLong("bytes_up");
        bytesDown = status.optLong("bytes_down");
        joules = status.optDouble("joules");
        measured = status.optInt("joules_rounds", helped);
        temperature = status.optDouble("temperature");
        battery = status.optDouble("battery", 1);
        charging = status.optBoolean("charging");
        JSONObject limits = status.isNull("limits") ? new JSONObject() : status.optJSONObject("limits");
        onlyCharging = limits.optBoolean("charging");
        onlyUnmetered = limits.optBoolean("unmetered");
        leastBattery = limits.optDouble("battery");
        highestTemperature = limits.optDouble("temperature_c");
        now = now(status);
    }

    /** From the status as Python gives it. */
    static Screen of(JSONObject status) {
        return new Screen(status);
    }

    /** Whether nothing is missing for learning. */
    boolean complete() {
        return joined && task != null && examples > 0;
    }

    /** Whether it goes on with another invitation alone. */
    boolean needsInvitation() {
        return now == Now.STOPPED && problem.words() == R.string.problem_login;
    }

    private Now now(JSONObject status) {
        String kind = problem == null ? "" : problem.kind;
        if (!running) {
            return finished ? Now.FINISHED
                    : status.optBoolean("paused") ? Now.PAUSED
                    : problem != null ? Now.STOPPED
                    : helped > 0 ? Now.RESTING : Now.READY;
        }
        if (!status.optBoolean("connected")) {
            return problem == null ? Now.CONNECTING : Now.OFFLINE;
        }
        switch (status.optString("unmet")) {
            case "unmetered":
                return Now.NETWORK;
            case "charging":
                return Now.CHARGER;
            case "battery":
                return Now.BATTERY;
            case "temperature_c":
                return Now.HEAT;
            default:
                return kind.equals("round.declined") ? Now.DECLINED
                        : kind.equals("server.silent") ? Now.UNHEARD
                        : round + helped > 0 ? Now.LEARNING : Now.FIRST;
        }
    }

    private static List<String> strings(JSONArray array) {
        List<String> found = new ArrayList<>();
        for (int i = 0; array != null && i < array.length(); i++) {
            found.add(array.optString(i));
        }
        return Collections.unmodifiableList(found);
    }

    private static double[] column(JSONArray rows, int column) {
        double[] found = new double[rows == null ? 0 : rows.length()];
        for (int i = 0; i < found.length; i++) {
            found[i] = rows.optJSONArray(i).optDouble(column);
        }
        return found;
    }
}
