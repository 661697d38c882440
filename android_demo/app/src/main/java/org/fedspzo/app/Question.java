package org.fedspzo.app;

import android.app.Dialog;
import android.os.Bundle;
import android.view.View;
import android.widget.EditText;

import androidx.annotation.NonNull;
import androidx.annotation.Nullable;
import androidx.fragment.app.DialogFragment;
import androidx.fragment.app.FragmentManager;

import com.google.android.material.dialog.MaterialAlertDialogBuilder;
import com.google.android.material.textfield.TextInputLayout;

import java.util.ArrayList;
import java.util.List;

/** A dialog that asks something and stays when the screen is turned; public, as Android makes it again. */
public final class Question extends DialogFragment {
    /** What is asked. */
    enum Kind { INVITATION, JOIN, LEAVE, RIGHT, DETAIL }

    /** The activity below. */
    interface Asker {
        /** The person agreed, chose or wrote something; {@code about} is what was asked about. */
        void answered(Kind kind, String text, String about);
    }

    private static final String KIND = "kind", ABOUT = "about", TEXT = "text", OFFERED = "offered";

    /** Ask for an invitation's text. */
    static void invitation(FragmentManager manager) {
        ask(manager, Kind.INVITATION, "", "", null);
    }

    /** Ask whether to take an invitation. */
    static void join(FragmentManager manager, String invitation, String text) {
        ask(manager, Kind.JOIN, invitation, text, null);
    }

    static void leave(FragmentManager manager) {
        ask(manager, Kind.LEAVE, "", "", null);
    }

    /** Ask what is right: one of what is offered, or where nothing is, a text. */
    static void right(FragmentManager manager, List<String> offered) {
        ask(manager, Kind.RIGHT, "", "", offered);
    }

    /** Show what an operator wants to know. */
    static void detail(FragmentManager manager, String text) {
        ask(manager, Kind.DETAIL, "", text, null);
    }

    private static void ask(FragmentManager manager, Kind kind, String about, String text, List<String> offered) {
        Bundle arguments = new Bundle();
        arguments.putString(KIND, kind.name());
        arguments.putString(ABOUT, about);
        arguments.putString(TEXT, text);
        arguments.putStringArrayList(OFFERED, offered == null ? new ArrayList<>() : new ArrayList<>(offered));
        Question question = new Question();
        question.setArguments(arguments);
        if (!manager.isStateSaved() && manager.findFragmentByTag(kind.name()) == null) {
            question.showNow(manager, kind.name());
        }
    }

    @NonNull
    @Override
    public Dialog onCreateDialog(@Nullable Bundle saved) {
        Kind kind = Kind.valueOf(argument(KIND));
        MaterialAlertDialogBuilder dialog = new MaterialAlertDialogBuilder(requireContext())
                .setNegativeButton(android.R.string.cancel, null);
        switch (kind) {
            case INVITATION:
                return withText(dialog.setTitle(R.string.join_title), kind, R.string.join_hint);
            case JOIN:
                return dialog.setTitle(R.string.join_title)
                        .setMessage(argument(TEXT))
                        .setPositiveButton(R.string.join_yes, (shown, which) -> answer(kind, ""))
                        .create();
            case LEAVE:
                return dialog.setTitle(R.string.leave_title)
                        .setMessage(R.string.leave_text)
                        .setPositiveButton(R.string.leave_yes, (shown, which) -> answer(kind, ""))
                        .create();
            case RIGHT:
                List<String> offered = requireArguments().getStringArrayList(OFFERED);
                dialog.setTitle(R.string.right_title);
                return offered == null || offered.isEmpty() ? withText(dialog, kind, R.string.answer_hint)
                        : dialog.setItems(offered.toArray(new String[0]), (shown, which) -> answer(kind, offered.get(which)))
                        .create();
            default:
                return dialog.setTitle(R.string.detail_title)
                        .setMessage(argument(TEXT))
                        .setNegativeButton(null, null)
                        .setPositiveButton(android.R.string.ok, null)
                        .create();
        }
    }

    private Dialog withText(MaterialAlertDialogBuilder dialog, Kind kind, int hint) {
        TextInputLayout box = (TextInputLayout) View.inflate(requireContext(), R.layout.question, null);
        box.setHint(hint);
        EditText text = box.findViewById(R.id.question_text);
        return dialog.setView(box)
                .setPositiveButton(android.R.string.ok, (shown, which) -> answer(kind, text.getText().toString()))
                .create();
    }

    private void answer(Kind kind, String text) {
        ((Asker) requireActivity()).answered(kind, text, argument(ABOUT));
    }

    private String argument(String name) {
        return requireArguments().getString(name, "");
    }
}
