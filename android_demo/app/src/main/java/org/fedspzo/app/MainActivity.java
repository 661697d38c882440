package org.fedspzo.app;

import android.app.Activity;
import android.app.AlertDialog;
import android.content.ActivityNotFoundException;
import android.content.Intent;
import android.content.pm.PackageManager;
import android.net.Uri;
import android.os.Build;
import android.os.Bundle;
import android.os.Handler;
import android.os.Looper;
import android.text.InputType;
import android.view.View;
import android.view.ViewGroup;
import android.widget.ArrayAdapter;
import android.widget.CheckBox;
import android.widget.EditText;
import android.widget.LinearLayout;
import android.widget.Spinner;
import android.widget.TextView;
import android.widget.Toast;

import org.json.JSONArray;
import org.json.JSONException;
import org.json.JSONObject;

import java.io.File;
import java.io.IOException;
import java.util.ArrayList;
import java.util.List;

/** The one screen: how the training goes, and all that a person can ask for. */
public final class MainActivity extends Activity {
    private static final int BUNDLE_ZIP = 1, BUNDLE_FOLDER = 2, DATA = 3, NOTIFICATIONS = 4;
    private static final String MAY_NOTIFY = "android.permission.POST_NOTIFICATIONS";
    private static final long REFRESH_MS = 1000;
    /** How often any label is suggested, where the person agrees. */
    private static final double EXPLORE = 0.05;

    private final Handler clock = new Handler(Looper.getMainLooper());
    private final Runnable tick = this::refresh;
    private final List<EditText> fields = new ArrayList<>();
    private Host host;
    private List<String> labels = new ArrayList<>();
    private String shownTask = "";

    @Override
    protected void onCreate(Bundle saved) {
        super.onCreate(saved);
        setContentView(R.layout.main);
        host = Host.of(this);
        onClick(R.id.start, this::askToStart);
        onClick(R.id.pause, this::pause);
        onClick(R.id.join, () -> askForInvitation(""));
        onClick(R.id.import_zip, () -> choose(new Intent(Intent.ACTION_OPEN_DOCUMENT), BUNDLE_ZIP));
        onClick(R.id.import_folder, () -> choose(new Intent(Intent.ACTION_OPEN_DOCUMENT_TREE), BUNDLE_FOLDER));
        onClick(R.id.import_data, () -> choose(new Intent(Intent.ACTION_OPEN_DOCUMENT), DATA));
        onClick(R.id.key, this::shareKey);
        onClick(R.id.leave, this::askToLeave);
        onClick(R.id.ask, this::ask);
        onClick(R.id.accept, () -> react(true, ""));
        onClick(R.id.reject, () -> react(false, ""));
        onClick(R.id.correct, this::askWhatIsRight);
        onClick(R.id.add, this::addExample);
        onClick(R.id.only_charging, this::setLimits);
        onClick(R.id.only_unmetered, this::setLimits);
        if (saved == null) {
            onNewIntent(getIntent());
        }
    }

    /** An invitation that a camera app read. Any page can send one, so it is shown before it counts. */
    @Override
    protected void onNewIntent(Intent intent) {
        if (Intent.ACTION_VIEW.equals(intent.getAction()) && intent.getDataString() != null) {
            askToJoin(intent.getDataString());
        }
    }

    @Override
    protected void onResume() {
        super.onResume();
        refresh();
    }

    @Override
    protected void onPause() {
        clock.removeCallbacks(tick);
        super.onPause();
    }

    private void refresh() {
        clock.removeCallbacks(tick);
        clock.postDelayed(tick, REFRESH_MS);
        host.status(this::show);
    }

    // What is shown.

    private void show(JSONObject status) {
        if (isDestroyed()) {
            return;
        }
        if (status.has("error")) {
            setText(R.id.message, status.optString("error"));
            setVisible(R.id.message, true);
            return;
        }
        boolean joined = !status.optString("broker").isEmpty(), running = status.optBoolean("running");
        setText(R.id.state, state(status, joined, running));
        setText(R.id.message, status.optString("message"));
        setVisible(R.id.message, !status.optString("message").isEmpty());
        if (!status.optString("answer").isEmpty()) {
            setText(R.id.answer, status.optString("answer"));
        }
        findViewById(R.id.start).setEnabled(joined && !running);
        findViewById(R.id.pause).setEnabled(running);
        findViewById(R.id.key).setEnabled(joined);
        findViewById(R.id.leave).setEnabled(joined || !status.optString("message").isEmpty());

        JSONArray losses = status.optJSONArray("losses");
        JSONArray last = losses.optJSONArray(losses.length() - 1);
        setText(R.id.round, last == null ? getString(R.string.round_none)
                : getString(R.string.round, last.optInt(0), Text.decimal(last.optDouble(1), 3)));
        ((LossCurve) findViewById(R.id.curve)).show(losses);
        setText(R.id.traffic, getString(R.string.traffic,
                Text.bytes(status.optLong("bytes_up")), Text.bytes(status.optLong("bytes_down"))));
        setText(R.id.energy, status.isNull("joules") ? getString(R.string.energy_unknown)
                : getString(R.string.energy, Text.decimal(status.optDouble("joules"), 1)));
        setText(R.id.battery, getString(R.string.battery,
                Math.round(100 * status.optDouble("battery")),
                getString(status.optBoolean("charging") ? R.string.charging : R.string.not_charging),
                status.isNull("temperature") ? getString(R.string.temperature_unknown)
                        : getString(R.string.temperature, Text.decimal(status.optDouble("temperature"), 1))));
        String waits = running ? status.optString("waits") : "";
        setText(R.id.waits, getString(R.string.waits, waits));
        setVisible(R.id.waits, !waits.isEmpty());
        JSONObject limits = status.optJSONObject("limits");
        ((CheckBox) findViewById(R.id.only_charging)).setChecked(limits.optBoolean("charging"));
        ((CheckBox) findViewById(R.id.only_unmetered)).setChecked(limits.optBoolean("unmetered"));
        setText(R.id.examples, getString(R.string.examples, status.optInt("examples")));
        showForm(status.optJSONObject("task"));
    }

    private String state(JSONObject status, boolean joined, boolean running) {
        String broker = status.optString("broker"), device = status.optString("device");
        if (!joined) {
            return getString(R.string.state_new);
        }
        if (running) {
            return status.optBoolean("connected")
                    ? getString(R.string.state_connected, device, broker) : getString(R.string.state_connecting, broker);
        }
        return status.optBoolean("finished") ? getString(R.string.state_finished)
                : status.optBoolean("paused") ? getString(R.string.state_paused)
                : getString(R.string.state_idle, device, broker);
    }

    /** Fields and labels of the bundle's task, made anew when it is another. */
    private void showForm(JSONObject task) {
        String description = task == null ? "" : task.toString();
        if (description.equals(shownTask)) {
            return;
        }
        shownTask = description;
        setVisible(R.id.example_first, task == null);
        setVisible(R.id.form, task != null);
        LinearLayout column = (LinearLayout) findViewById(R.id.fields);
        column.removeAllViews();
        fields.clear();
        if (task == null) {
            return;
        }
        for (String name : strings(task.optJSONArray("fields"))) {
            EditText field = new EditText(this);
            field.setHint(name);
            field.setTag(name);
            field.setInputType(InputType.TYPE_CLASS_TEXT | InputType.TYPE_TEXT_FLAG_MULTI_LINE
                    | InputType.TYPE_TEXT_FLAG_CAP_SENTENCES);
            column.addView(field, ViewGroup.LayoutParams.MATCH_PARENT, ViewGroup.LayoutParams.WRAP_CONTENT);
            fields.add(field);
        }
        labels = strings(task.optJSONArray("labels"));
        ArrayAdapter<String> adapter = new ArrayAdapter<>(this, android.R.layout.simple_spinner_item, labels);
        adapter.setDropDownViewResource(android.R.layout.simple_spinner_dropdown_item);
        ((Spinner) findViewById(R.id.label)).setAdapter(adapter);
        setVisible(R.id.explore, !labels.isEmpty());
        setVisible(R.id.label, !labels.isEmpty());
        setVisible(R.id.reference, labels.isEmpty());
        setText(R.id.answer, "");
        setVisible(R.id.reactions, false);
    }

    // What can be asked for.

    private void askToStart() {
        if (Build.VERSION.SDK_INT >= 33 && checkSelfPermission(MAY_NOTIFY) != PackageManager.PERMISSION_GRANTED) {
            requestPermissions(new String[] {MAY_NOTIFY}, NOTIFICATIONS);
        } else {
            start();
        }
    }

    /** Whatever the answer: without the permission the service is told of in the system's list of active apps alone. */
    @Override
    public void onRequestPermissionsResult(int request, String[] permissions, int[] results) {
        if (request == NOTIFICATIONS) {
            start();
        }
    }

    /** What is missing is said here, not in the service, which has no screen. */
    private void start() {
        host.command(answer -> {
            if (!isDestroyed() && !complain(answer)) {
                TrainingJob.schedule(this);
                TrainingService.start(this);
            }
        }, "check_ready");
    }

    private void pause() {
        TrainingJob.cancel(this);
        TrainingService.stop(this);
        host.command(this::done, "pause");
    }

    private void setLimits() {
        try {
            host.command(this::done, "set_limits", new JSONObject()
                    .put("charging", ((CheckBox) findViewById(R.id.only_charging)).isChecked())
                    .put("unmetered", ((CheckBox) findViewById(R.id.only_unmetered)).isChecked())
                    .toString());
        } catch (JSONException impossible) {
            throw new IllegalStateException(impossible);
        }
    }

    private void askForInvitation(String text) {
        EditText input = new EditText(this);
        input.setHint(R.string.join_hint);
        input.setMaxLines(6);
        input.setText(text);
        new AlertDialog.Builder(this)
                .setTitle(R.string.join_title)
                .setView(input)
                .setPositiveButton(android.R.string.ok, (dialog, which) -> askToJoin(input.getText().toString()))
                .setNegativeButton(android.R.string.cancel, null)
                .show();
    }

    private void askToJoin(String invitation) {
        host.command(answer -> {
            if (isDestroyed() || complain(answer)) {
                return;
            }
            String device = answer.optString("device");
            String question = getString(R.string.join_confirm, answer.optString("job"),
                    device.isEmpty() ? getString(R.string.join_anonymous) : device, answer.optString("broker"));
            new AlertDialog.Builder(this)
                    .setTitle(R.string.join_title)
                    .setMessage(question)
                    .setPositiveButton(android.R.string.ok, (dialog, which) ->
                            host.command(this::done, "enrol", invitation))
                    .setNegativeButton(android.R.string.cancel, null)
                    .show();
        }, "describe_invitation", invitation);
    }

    /** The public key, for the list of a server that takes known devices alone. */
    private void shareKey() {
        host.command(answer -> {
            if (!isDestroyed() && !complain(answer)) {
                Intent send = new Intent(Intent.ACTION_SEND).setType("text/plain");
                startActivity(Intent.createChooser(send.putExtra(Intent.EXTRA_TEXT, answer.optString("line")), null));
            }
        }, "show_key");
    }

    private void askToLeave() {
        new AlertDialog.Builder(this)
                .setTitle(R.string.leave_title)
                .setMessage(R.string.leave_text)
                .setPositiveButton(android.R.string.ok, (dialog, which) -> {
                    TrainingJob.cancel(this);
                    TrainingService.stop(this);
                    host.command(this::done, "leave");
                })
                .setNegativeButton(android.R.string.cancel, null)
                .show();
    }

    private void ask() {
        setText(R.id.answer, getString(R.string.working));
        setVisible(R.id.reactions, false);
        CheckBox explore = (CheckBox) findViewById(R.id.explore);
        boolean mayExplore = explore.getVisibility() == View.VISIBLE && explore.isChecked();
        host.command(answer -> {
            setText(R.id.answer, answered(answer));
            setVisible(R.id.reactions, answer.has("shown"));
        }, "predict", record().toString(), mayExplore ? EXPLORE : 0.0);
    }

    private String answered(JSONObject answer) {
        if (!answer.has("labels")) {
            return answer.has("error") ? answer.optString("error") : answer.optString("answer");
        }
        StringBuilder lines = new StringBuilder();
        if (answer.has("shown")) {
            lines.append(getString(R.string.suggestion, answer.optString("shown"))).append('\n');
        }
        JSONArray labels = answer.optJSONArray("labels");
        for (int i = 0; i < Math.min(3, labels.length()); i++) {
            JSONArray entry = labels.optJSONArray(i);
            lines.append(getString(R.string.share, entry.optString(0), Math.round(100 * entry.optDouble(1)))).append('\n');
        }
        return lines.toString().trim();
    }

    private void askWhatIsRight() {
        AlertDialog.Builder dialog = new AlertDialog.Builder(this).setTitle(R.string.right_title);
        if (labels.isEmpty()) {
            EditText input = new EditText(this);
            input.setHint(R.string.answer_hint);
            dialog.setView(input).setPositiveButton(android.R.string.ok,
                    (shown, which) -> react(false, input.getText().toString()));
        } else {
            List<String> offered = labels;
            dialog.setItems(offered.toArray(new String[0]), (shown, which) -> react(false, offered.get(which)));
        }
        dialog.setNegativeButton(android.R.string.cancel, null).show();
    }

    /** What the person did with the suggestion; what is right, if they say so. */
    private void react(boolean accepted, String right) {
        setVisible(R.id.reactions, false); // a second tap would be a second reaction
        host.command(answer -> {
            if (complain(answer)) {
                setVisible(R.id.reactions, true);
            } else {
                tell(getString(R.string.reacted));
            }
            refresh();
        }, "react", accepted, right);
    }

    private void addExample() {
        Spinner spinner = (Spinner) findViewById(R.id.label);
        EditText reference = (EditText) findViewById(R.id.reference);
        Object label = spinner.getVisibility() == View.VISIBLE ? spinner.getSelectedItem() : reference.getText().toString();
        JSONObject record = record();
        try {
            record.put(new JSONObject(shownTask).getString("target"), label);
        } catch (JSONException error) {
            complain(Host.problem(error.toString()));
            return;
        }
        host.command(answer -> {
            if (!complain(answer)) {
                tell(getString(R.string.added));
                for (EditText field : fields) {
                    field.setText("");
                }
                reference.setText("");
            }
            refresh();
        }, "add_example", record.toString());
    }

    /** The fields as they are filled in. */
    private JSONObject record() {
        JSONObject record = new JSONObject();
        try {
            for (EditText field : fields) {
                record.put((String) field.getTag(), field.getText().toString());
            }
        } catch (JSONException impossible) {
            throw new IllegalStateException(impossible);
        }
        return record;
    }

    private void choose(Intent intent, int request) {
        if (request != BUNDLE_FOLDER) {
            intent.addCategory(Intent.CATEGORY_OPENABLE).setType(request == BUNDLE_ZIP ? "application/zip" : "*/*");
        }
        try {
            startActivityForResult(intent, request);
        } catch (ActivityNotFoundException error) {
            tell(getString(R.string.file_unreadable, error.getMessage()));
        }
    }

    @Override
    protected void onActivityResult(int request, int result, Intent data) {
        if (result != RESULT_OK || data == null || data.getData() == null) {
            return;
        }
        Uri uri = data.getData();
        tell(getString(R.string.working));
        host.background(() -> {
            File folder = new File(getNoBackupFilesDir(), "chosen");
            try {
                Documents.delete(folder);
                folder.mkdirs();
                File file = new File(folder, request == BUNDLE_FOLDER ? "bundle" : Documents.name(getContentResolver(), uri));
                if (request == BUNDLE_FOLDER) {
                    Documents.copyTree(getContentResolver(), uri, file);
                } else {
                    Documents.copyFile(getContentResolver(), uri, file);
                }
                host.answer(answer -> {
                    if (!complain(answer)) {
                        tell(getString(R.string.imported));
                    }
                    refresh();
                }, request == DATA ? "import_examples" : "import_bundle", file.getPath());
            } catch (IOException | RuntimeException error) { // a provider throws what it likes
                String reason = getString(R.string.file_unreadable, error.getMessage());
                clock.post(() -> complain(Host.problem(reason)));
            } finally {
                Documents.delete(folder);
            }
        });
    }

    // Small things.

    private void done(JSONObject answer) {
        complain(answer);
        refresh();
    }

    /** Show the error of an answer, if it has one. */
    private boolean complain(JSONObject answer) {
        if (answer.has("error") && !isDestroyed()) {
            new AlertDialog.Builder(this)
                    .setMessage(answer.optString("error"))
                    .setPositiveButton(android.R.string.ok, null)
                    .show();
        }
        return answer.has("error");
    }

    private void tell(String text) {
        Toast.makeText(this, text, Toast.LENGTH_SHORT).show();
    }

    private void onClick(int id, Runnable action) {
        findViewById(id).setOnClickListener(view -> action.run());
    }

    private void setText(int id, String text) {
        ((TextView) findViewById(id)).setText(text);
    }

    private void setVisible(int id, boolean visible) {
        findViewById(id).setVisibility(visible ? View.VISIBLE : View.GONE);
    }

    private static List<String> strings(JSONArray array) {
        List<String> found = new ArrayList<>();
        for (int i = 0; i < array.length(); i++) {
            found.add(array.optString(i));
        }
        return found;
    }
}
