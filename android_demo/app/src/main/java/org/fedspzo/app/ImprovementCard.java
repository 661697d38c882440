package org.fedspzo.app;

import android.content.res.Resources;
import android.view.View;

/** Whether the model gets better: a verdict, the figures behind it, and their course. */
final class ImprovementCard {
    /** Of N examples one is held back (fedspzo_app/held_back.py). */
    private static final int ONE_IN = 5;

    private final View card;
    private final Chart chart;

    ImprovementCard(View page) {
        card = page.findViewById(R.id.improvement);
        chart = card.findViewById(R.id.chart);
    }

    void show(Screen screen) {
        Screen.Improvement found = screen.improvement;
        Views.show(card, screen.complete() && found != null);
        if (found == null) {
            return;
        }
        Views.text(card, R.id.verdict, card.getResources().getString(verdict(found.verdict, screen.finished)));
        Views.text(card, R.id.verdict_text, text(found));
        boolean drawn = found.values.length > 1;
        Views.show(chart, drawn);
        if (drawn) {
            chart.show(found);
            chart.setContentDescription(text(found));
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
        if (found.values.length == 0) {
            return found.examples == 0 || found.examples >= found.fewest ? resources.getString(R.string.verdict_none_text)
                    : resources.getString(R.string.verdict_few_text, found.examples, found.fewest,
                    ONE_IN * (found.fewest - found.examples));
        }
        double first = found.values[0], last = found.values[found.values.length - 1];
        if (found.values.length == 1) {
            return found.counts ? resources.getString(R.string.verdict_first_text_right, percent(first))
                    : resources.getString(R.string.verdict_first_text_loss, Text.decimal(first, 2));
        }
        return found.counts
                ? resources.getString(R.string.verdict_text_right, percent(last), percent(first), found.examples)
                : resources.getString(R.string.verdict_text_loss, Text.decimal(last, 2), Text.decimal(first, 2), found.examples);
    }

    private static int percent(double share) {
        return (int) Math.round(100 * share);
    }
}
