package org.fedspzo.app;

import org.json.JSONArray;
import org.json.JSONException;
import org.json.JSONObject;

import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.Map;

/** What Python says in each state of the screen. */
final class States {
    private static final String TASK =
            "{'name': 'requests', 'fields': ['text'], 'labels': ['alarm', 'music', 'call', 'timer'], 'target': 'label'}";

    /** To a question. */
    static final String ANSWER = "{\"labels\": [[\"music\", 0.61], [\"alarm\", 0.3], [\"call\", 0.06], [\"timer\", 0.03]],"
            + " \"shown\": \"music\"}";

    /** How an invitation looks. */
    static final String INVITATION = "fedspzo:hgF4JGZlZC5leGFtcGxlLm9yZy9xYmNkZWZnaGlqa2xtbm9wcXJzdHV2d3h5egEBAgMEBQYHCAkKCwwNDg8QERIT";

    private States() {}

    /** All of them, by name. */
    static Map<String, String> all() {
        Map<String, String> found = new LinkedHashMap<>();
        found.put("newcomer", newcomer());
        found.put("step-model", joined());
        found.put("step-model-offered", offered());
        found.put("step-examples", withModel());
        found.put("ready", ready());
        found.put("connecting", with(ready(), "running", true));
        found.put("offline", offline());
        found.put("unheard", message(connected(), "server.silent", "waiting for the server of job default"));
        found.put("waiting", with(connected(), "unmet", "unmetered", "metered", true));
        found.put("waiting-charger", with(connected(), "unmet", "charging"));
        found.put("waiting-battery", with(connected(), "unmet", "battery", "battery", 0.1));
        found.put("waiting-heat", with(connected(), "unmet", "temperature_c", "temperature", 43.5));
        found.put("first", connected());
        found.put("learning", learning());
        found.put("better", better());
        found.put("not-better", notBetter());
        found.put("worse", worse());
        found.put("worse-end", with(worse(), "running", false, "connected", false, "finished", true));
        found.put("loss-alone", lossAlone());
        found.put("few-held-back", with(ready(), "improvement", improvement("", 4, 1, values(), values())));
        found.put("paused", with(better(), "running", false, "connected", false, "paused", true));
        found.put("resting", with(better(), "running", false, "connected", false));
        found.put("ended", ended());
        found.put("error", error());
        found.put("declined", message(learning(), "round.declined", "objective = loss needs labels, and these examples are reactions"));
        found.put("damaged", message(newcomer(), "state.sealed", "invitation.sealed cannot be unsealed (KeyError)"));
        return found;
    }

    static String newcomer() {
        return with("{}", "broker", "", "device", "", "job", "", "task", JSONObject.NULL, "examples", 0, "answer", "", "running",
                false, "connected", false, "finished", false, "paused", false, "message", "", "kind", "", "round", 0, "rounds", 0,
                "losses", new JSONArray(), "improvement", JSONObject.NULL, "bytes_up", 0, "bytes_down", 0, "joules", JSONObject.NULL,
                "battery", 0.81, "charging", true, "temperature", 30.1, "throttled", false, "metered", false, "waits", "",
                "unmet", "", "limits", json("{'battery': 0.2, 'temperature_c': 42, 'charging': false, 'unmetered': true}"));
    }

    static String joined() {
        return with(newcomer(), "broker", "mqtts://fed.example.org:8883", "device", "phone-1", "job", "default");
    }

    static String offered() {
        return with(joined(), "offers_bundle", true);
    }

    static String downloading() {
        return with(offered(), "fetched", new JSONArray(Arrays.asList("weights.safetensors", 30_000_000, 60_000_000)));
    }

    static String withModel() {
        return with(joined(), "task", json(TASK), "improvement", improvement("", 0, 1, values(), values()));
    }

    static String ready() {
        return with(withModel(), "examples", 1168);
    }

    static String connected() {
        return with(ready(), "running", true, "connected", true);
    }

    static String offline() {
        return message(with(learning(), "connected", false), "broker.no-answer",
                "the broker at mqtts://fed.example.org:8883 does not answer within 15 s (Connection refused); start it, or check"
                        + " the URL");
    }

    static String learning() {
        return with(connected(), "round", 11, "rounds", 40, "losses", losses(11), "bytes_up", 12_782, "bytes_down", 14_619, "joules", 31.4,
                "charging", false, "improvement", improvement("", 200, 1, values(0.488), values(1.31)));
    }

    static String better() {
        return with(learning(), "round", 33, "losses", losses(31), "bytes_up", 36_022, "bytes_down", 43_857, "joules", 91.2,
                "improvement", improved(3));
    }

    /** From a server that does not say how many rounds there are. */
    static String notBetter() {
        return with(learning(), "round", 24, "rounds", 0, "losses", losses(24), "improvement",
                improvement("same", 200, 3, values(0.488, 0.5, 0.49, 0.505, 0.48, 0.47, 0.495, 0.49),
                        values(1.31, 1.3, 1.32, 1.29, 1.3, 1.31, 1.29, 1.3)));
    }

    static String worse() {
        return with(learning(), "round", 18, "losses", losses(18), "improvement",
                improvement("worse", 200, 3, values(0.488, 0.49, 0.45, 0.43, 0.4, 0.38), values(1.31, 1.33, 1.4, 1.52, 1.6, 1.71)));
    }

    /** Of a task whose answers are not counted. */
    static String lossAlone() {
        return with(learning(), "round", 12, "losses", losses(12), "improvement",
                improvement("better", 50, 3, null, values(2.85, 2.7, 2.52, 2.4, 2.31)));
    }

    static String ended() {
        return with(better(), "round", 40, "rounds", 0, "running", false, "connected", false, "finished", true,
                "improvement", improved(4));
    }

    static String error() {
        return message(with(ready(), "running", false), "device.refused",
                "the server refuses device 'phone-1': it is not in the list of --admit");
    }

    static String message(String status, String kind, String text) {
        return with(status, "kind", kind, "message", text);
    }

    /** One of {@link #all}, as the screen takes it. */
    static Screen screen(String name) {
        try {
            return Screen.of(new JSONObject(all().get(name)));
        } catch (JSONException error) {
            throw new IllegalArgumentException(name, error);
        }
    }

    /** With other values of some fields. */
    static String with(String status, Object... changes) {
        try {
            JSONObject found = new JSONObject(status);
            for (int i = 0; i < changes.length; i += 2) {
                found.put((String) changes[i], changes[i + 1]);
            }
            return found.toString();
        } catch (JSONException error) {
            throw new IllegalArgumentException(error);
        }
    }

    /** Of a text in which ' stands for ". */
    static JSONObject json(String text) {
        try {
            return new JSONObject(text.replace('\'', '"'));
        } catch (JSONException error) {
            throw new IllegalArgumentException(text, error);
        }
    }

    private static JSONArray losses(int count) {
        JSONArray found = new JSONArray();
        for (int round = 1; round <= count; round++) {
            found.put(new JSONArray(Arrays.asList(round, 1.4)));
        }
        return found;
    }

    private static JSONObject improved(int every) {
        return improvement("better", 200, every, values(0.488, 0.5, 0.485, 0.52, 0.56, 0.55, 0.6, 0.63, 0.66, 0.65, 0.715),
                values(1.31, 1.27, 1.28, 1.2, 1.14, 1.15, 1.06, 1.02, 0.95, 0.93, 0.85));
    }

    /** One measurement every few rounds; no shares of right answers where the task does not count them. */
    private static JSONObject improvement(String verdict, int examples, int every, double[] right, double[] losses) {
        try {
            JSONObject courses = new JSONObject().put("loss", course(every, losses));
            if (right != null) {
                courses.put("right", course(every, right));
            }
            return new JSONObject().put("examples", examples).put("fewest", 20).put("verdict", verdict).put("courses", courses);
        } catch (JSONException error) {
            throw new IllegalArgumentException(error);
        }
    }

    private static JSONObject course(int every, double[] values) throws JSONException {
        JSONArray points = new JSONArray(), smooth = new JSONArray();
        for (int i = 0; i < values.length; i++) {
            int reach = Math.min(Math.min(2, i), values.length - 1 - i);
            double sum = 0;
            for (int j = i - reach; j <= i + reach; j++) {
                sum += values[j];
            }
            points.put(new JSONArray(Arrays.asList(every * i, values[i])));
            smooth.put(new JSONArray(Arrays.asList(every * i, sum / (2 * reach + 1))));
        }
        return new JSONObject().put("points", points).put("smooth", smooth);
    }

    private static double[] values(double... found) {
        return found;
    }
}
