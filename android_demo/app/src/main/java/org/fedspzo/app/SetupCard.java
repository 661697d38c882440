package org.fedspzo.app;

import android.content.res.Resources;
import android.view.View;
import android.widget.TextView;

import com.google.android.material.progressindicator.LinearProgressIndicator;

/** The steps before learning: those that are done, the one that is next with its buttons, and what comes after. */
final class SetupCard {
    private static final int BUNDLE = 1;
    private static final int[] STEPS = {R.id.step_join, R.id.step_bundle, R.id.step_data};
    private static final int[] ACTIONS = {R.id.actions_join, R.id.actions_bundle, R.id.actions_data};
    private static final int[] TITLES = {R.string.step_join, R.string.step_bundle, R.string.step_data};
    private static final int[] TEXTS = {R.string.step_join_text, R.string.step_bundle_text, R.string.step_data_text};

    private final View card;
    /** The step whose buttons are there, unless an import is on. */
    private int next = -1;
    private boolean offered = true;

    SetupCard(View page) {
        card = page.findViewById(R.id.setup);
    }

    void show(Screen screen) {
        Views.show(card, !screen.complete());
        boolean[] done = {screen.joined, screen.task != null, screen.examples > 0};
        String[] found = found(screen);
        int count = 0;
        next = -1;
        for (int i = 0; i < STEPS.length; i++) {
            next = next < 0 && !done[i] ? i : next;
            count += done[i] ? 1 : 0;
            int text = i == BUNDLE && screen.offersBundle ? R.string.step_bundle_offered : TEXTS[i];
            showStep(i, done[i], done[i] ? found[i] : string(i == next ? text : R.string.step_later));
        }
        offer(offered);
        for (int id : new int[] {R.id.download, R.id.import_file}) {
            Views.show(card.findViewById(id), screen.offersBundle);
        }
        for (int id : new int[] {R.id.import_zip, R.id.import_folder}) {
            Views.show(card.findViewById(id), !screen.offersBundle);
        }
        ((TextView) card.findViewById(R.id.setup_state)).setText(card.getResources().getString(R.string.setup_state, count));
        ((LinearProgressIndicator) card.findViewById(R.id.setup_progress)).setProgress(count);
        Problem problem = screen.problem;
        Views.text(card, R.id.setup_problem, problem == null ? "" : string(problem.words()));
        Views.show(card.findViewById(R.id.setup_detail), problem != null);
    }

    /** Have the buttons there, or not while an import is on, which they would begin. */
    void offer(boolean may) {
        offered = may;
        for (int i = 0; i < STEPS.length; i++) {
            Views.show(card.findViewById(ACTIONS[i]), may && i == next);
        }
    }

    private void showStep(int index, boolean done, String text) {
        View step = card.findViewById(STEPS[index]);
        ((TextView) step.findViewById(R.id.step_number)).setText(String.valueOf(index + 1));
        Views.show(step.findViewById(R.id.step_number), !done);
        Views.show(step.findViewById(R.id.step_done), done);
        ((TextView) step.findViewById(R.id.step_title)).setText(TITLES[index]);
        Views.text(step, R.id.step_text, text);
    }

    private String[] found(Screen screen) {
        Resources resources = card.getResources();
        return new String[] {
            resources.getString(R.string.step_join_done,
                    screen.device.isEmpty() ? string(R.string.join_anonymous) : screen.device),
            screen.task == null ? "" : resources.getString(R.string.step_bundle_done, screen.task.name),
            resources.getQuantityString(R.plurals.example_count, screen.examples, screen.examples),
        };
    }

    private String string(int id) {
        return card.getResources().getString(id);
    }
}
