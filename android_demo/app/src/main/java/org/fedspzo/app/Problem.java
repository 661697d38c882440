package org.fedspzo.app;

import org.json.JSONObject;

/** What went wrong: in the words of the phone's owner, and with the detail for whoever runs the server. */
final class Problem {
    /** The error's kind, as docs/errors.md lists them; or one of the app's own. */
    final String kind;
    /** The program's own sentence. */
    final String detail;

    Problem(String kind, String detail) {
        this.kind = kind;
        this.detail = detail;
    }

    /** Of an answer, or null where it has none. */
    static Problem of(JSONObject answer) {
        return answer.has("error") ? new Problem(answer.optString("kind"), answer.optString("error")) : null;
    }

    /** The string that says it to the phone's owner. */
    int words() {
        switch (kind) {
            case "broker.no-answer":
            case "broker.host":
                return R.string.problem_offline;
            case "broker.refused":
            case "device.refused":
                return R.string.problem_login;
            case "device.joined":
                return R.string.problem_joined;
            case "device.no-invitation":
                return R.string.problem_invitation;
            case "device.no-bundle":
            case "bundle.not-a-zip":
            case "bundle.no-manifest-in-zip":
            case "bundle.not-a-bundle":
                return R.string.problem_not_bundle;
            case "bundle.other-server":
            case "device.wrong-server-key":
                return R.string.problem_other_server;
            case "bundle.no-room":
            case "file.no-room":
                return R.string.problem_room;
            case "data.empty-field":
            case "data.empty-text":
                return R.string.problem_empty;
            case "data.none-yet":
                return R.string.problem_none;
            case "round.declined":
                return R.string.problem_declined;
            case "state.sealed":
                return R.string.problem_key;
            case "file":
                return R.string.problem_file;
            default:
                return family();
        }
    }

    private int family() {
        switch (kind.substring(0, Math.max(0, kind.indexOf('.')))) {
            case "access":
                return R.string.problem_invitation;
            case "broker":
                return R.string.problem_offline;
            case "bundle":
                return R.string.problem_bundle;
            case "data":
                return R.string.problem_examples;
            case "engine":
                return R.string.problem_engine;
            case "state":
                return R.string.problem_state;
            default:
                return R.string.problem_other;
        }
    }
}
