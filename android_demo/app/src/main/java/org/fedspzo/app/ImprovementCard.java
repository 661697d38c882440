package org.fedspzo.app;

import android.content.res.Resources;
import android.view.View;

/** Whether the model gets better: a verdict, the figures behind it, and their courses. */
final class ImprovementCard {
    /** Of N examples one is held back (fedspzo_app/held_back.py). */
    private static final int ONE_IN = 5;

    private final View card;

    ImprovementCard(View page) {
        card = page.findViewById(R.id.improvement);
    }

    void show(Screen screen) {
        Screen.Improvement found = screen.improvement;
        Views.show(card, screen.complete() && found != null);
        if (found == null) {
            return;
        }
        Views.text(card, R.id.verdict, card.getResources().getString(verdict(found.verdict, screen.finished)));
        Views.text(card, R.id.verdict_text, text(found));
        Views.text(card, R.id.verdict_advice, !found.verdict.equals("worse") ? ""
                : card.getResources().getString(screen.finished ? R.string.worse_end_text : R.string.worse_text));
        draw(R.id.chart_right, found.right);
        draw(R.id.chart_loss, found.loss);
    }

    private void draw(int id, Screen.Course course) {
        Chart chart = card.findViewById(id);
        boolean drawn = course != null && course.values.length > 1;
        Views.show(chart, drawn);
        if (drawn) {
            chart.show(course);
        }
    }

    private static int verdict(String verdict, boolean finished) {
        switch (verdict) {
            case "better":
                return finished ? R.string.verdict_better_end : R.string.verdict_better;
            case "worse":
                return R.string.verdict_worse;
            case "same":
                return finished ? R.string.verdict_same_end : R.string.verdict_same;
            default:
                return R.string.verdict_none;
        }
    }

    private String text(Screen.Improvement found) {
        Resources resources = card.getResources();
        int measured = found.loss.values.length;
        if (measured == 0) {
            return found.examples == 0 || found.examples >= found.fewest ? resources.getString(R.string.verdict_none_text)
                    : resources.getString(R.string.verdict_few_text, found.examples, found.fewest,
                    ONE_IN * (found.fewest - found.examples));
        }
        String loss = measured == 1 ? resources.getString(R.string.loss_first, Text.decimal(found.loss.first(), 2))
                : resources.getString(R.string.loss_now, Text.decimal(found.loss.last(), 2), Text.decimal(found.loss.first(), 2));
        String measuredOn = resources.getString(R.string.measured_on, found.examples);
        if (found.right == null) {
            return loss + "\n" + measuredOn;
        }
        String right = measured == 1 ? resources.getString(R.string.right_first, percent(found.right.first()))
                : resources.getString(R.string.right_now, percent(found.right.last()), percent(found.right.first()));
        return right + "\n" + loss + "\n" + measuredOn;
    }

    private static int percent(double share) {
        return (int) Math.round(100 * share);
    }
}
