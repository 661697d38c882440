package org.fedspzo.app;

import android.os.Bundle;
import android.text.SpannableStringBuilder;
import android.text.Spanned;
import android.text.style.RelativeSizeSpan;
import android.view.View;
import android.widget.ArrayAdapter;
import android.widget.CompoundButton;
import android.widget.EditText;
import android.widget.LinearLayout;

import com.google.android.material.textfield.MaterialAutoCompleteTextView;
import com.google.android.material.textfield.TextInputLayout;

import org.json.JSONArray;
import org.json.JSONException;
import org.json.JSONObject;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** A form to ask the model and to teach it, of the task's fields and labels. */
final class TrialCard {
    private static final String TEXTS = "texts", LABEL = "label", REFERENCE = "reference", OPEN = "open";
    /** Answers that are shown, the likeliest first. */
    private static final int SHOWN = 3;
    /** How much larger the suggestion is written than the answers. */
    private static final float LARGER = 1.3f;

    private final View card;
    private final LinearLayout fields;
    private final TextInputLayout labelBox, referenceBox;
    private final MaterialAutoCompleteTextView label;
    private final EditText reference;
    private final CompoundButton explore;
    private final Map<String, TextInputLayout> boxes = new LinkedHashMap<>();
    private Screen.Task task;
    /** Whether it is there before there are examples, because the person wants to write some. */
    private boolean open;
    private Bundle saved;

    TrialCard(View page, Bundle saved) {
        card = page.findViewById(R.id.trial);
        fields = card.findViewById(R.id.fields);
        labelBox = card.findViewById(R.id.label_box);
        label = card.findViewById(R.id.label);
        referenceBox = card.findViewById(R.id.reference_box);
        reference = card.findViewById(R.id.reference);
        explore = card.findViewById(R.id.explore);
        this.saved = saved;
        open = saved != null && saved.getBoolean(OPEN);
        for (View view : new View[] {label, reference}) {
            view.setSaveEnabled(false); // they are kept by #save, since the form is made later than Android restores
        }
    }

    /** Have it there, to write examples. */
    void open() {
        open = true;
    }

    void show(Screen screen, Trial trial) {
        boolean seen = screen.task != null && (screen.complete() || (open && screen.joined));
        Views.show(card, seen);
        if (!seen) {
            return;
        }
        if (!screen.task.sameAs(task)) {
            make(screen.task);
        }
        Views.text(card, R.id.examples, screen.examples == 0 ? "" : card.getResources()
                .getQuantityString(R.plurals.example_count, screen.examples, screen.examples));
        showAnswer(trial, screen.answer);
    }

    /** What is typed and chosen, for when the screen is turned. */
    void save(Bundle state) {
        if (task == null && saved != null) {
            state.putAll(saved);
            return;
        }
        ArrayList<String> texts = new ArrayList<>();
        for (TextInputLayout box : boxes.values()) {
            texts.add(text(box));
        }
        state.putStringArrayList(TEXTS, texts);
        state.putString(LABEL, label.getText().toString());
        state.putString(REFERENCE, reference.getText().toString());
        state.putBoolean(OPEN, open);
    }

    /** The fields as they are filled in; null, and said at the field, where one is empty. */
    JSONObject record() {
        JSONObject record = new JSONObject();
        boolean whole = true;
        for (Map.Entry<String, TextInputLayout> entry : boxes.entrySet()) {
            boolean empty = text(entry.getValue()).trim().isEmpty();
            entry.getValue().setError(empty ? card.getContext().getString(R.string.write_first) : null);
            whole &= !empty;
            put(record, entry.getKey(), text(entry.getValue()));
        }
        return whole ? record : null;
    }

    /** The fields with what is right; null, and said where, if something is missing. */
    JSONObject example() {
        JSONObject record = record();
        boolean chosen = !task.labels.isEmpty();
        String right = chosen ? label.getText().toString() : reference.getText().toString();
        TextInputLayout box = chosen ? labelBox : referenceBox;
        box.setError(right.trim().isEmpty() ? card.getContext().getString(chosen ? R.string.choose_first : R.string.write_first)
                : null);
        if (record == null || right.trim().isEmpty()) {
            return null;
        }
        put(record, task.target, right);
        return record;
    }

    /** Whether any label may be suggested. */
    boolean explores() {
        return explore.getVisibility() == View.VISIBLE && explore.isChecked();
    }

    List<String> labels() {
        return task.labels;
    }

    void clear() {
        for (TextInputLayout box : boxes.values()) {
            edit(box).setText("");
        }
        label.setText("", false);
        reference.setText("");
    }

    /** Fields and labels of a task. */
    private void make(Screen.Task found) {
        task = found;
        fields.removeAllViews();
        boxes.clear();
        List<String> texts = saved == null ? null : saved.getStringArrayList(TEXTS);
        for (String name : found.fields) {
            View.inflate(card.getContext(), R.layout.field, fields);
            TextInputLayout box = (TextInputLayout) fields.getChildAt(fields.getChildCount() - 1);
            box.setHint(Fields.label(card.getResources(), name));
            edit(box).setTag(name);
            if (texts != null && boxes.size() < texts.size()) {
                edit(box).setText(texts.get(boxes.size()));
            }
            boxes.put(name, box);
        }
        label.setAdapter(new ArrayAdapter<>(card.getContext(), android.R.layout.simple_list_item_1, found.labels));
        if (saved != null) {
            label.setText(saved.getString(LABEL), false);
            reference.setText(saved.getString(REFERENCE));
            saved = null;
        }
        Views.show(explore, !found.labels.isEmpty());
        Views.show(labelBox, !found.labels.isEmpty());
        Views.show(referenceBox, found.labels.isEmpty());
    }

    private void showAnswer(Trial trial, String soFar) {
        Views.text(card, R.id.answer, trial.answer != null ? answer(trial.answer)
                : !trial.asking ? "" : soFar.isEmpty() ? card.getContext().getString(R.string.working) : soFar);
        Views.show(card.findViewById(R.id.reactions), trial.reactable);
    }

    private CharSequence answer(JSONObject answer) {
        Problem problem = Problem.of(answer);
        if (problem != null) {
            return card.getContext().getString(problem.words());
        }
        JSONArray found = answer.optJSONArray("labels");
        if (found == null) {
            return answer.optString("answer");
        }
        SpannableStringBuilder lines = new SpannableStringBuilder();
        if (answer.has("shown")) {
            lines.append(card.getContext().getString(R.string.suggestion, answer.optString("shown")),
                    new RelativeSizeSpan(LARGER), Spanned.SPAN_EXCLUSIVE_EXCLUSIVE);
        }
        for (int i = 0; i < Math.min(SHOWN, found.length()); i++) {
            JSONArray entry = found.optJSONArray(i);
            lines.append(lines.length() == 0 ? "" : "\n").append(
                    card.getContext().getString(R.string.share, entry.optString(0), Math.round(100 * entry.optDouble(1))));
        }
        return lines;
    }

    private static void put(JSONObject record, String name, String text) {
        try {
            record.put(name, text);
        } catch (JSONException impossible) {
            throw new IllegalStateException(impossible);
        }
    }

    private static EditText edit(TextInputLayout box) {
        EditText found = box.getEditText();
        if (found == null) {
            throw new IllegalStateException("a field without its text");
        }
        return found;
    }

    private static String text(TextInputLayout box) {
        return edit(box).getText().toString();
    }
}
