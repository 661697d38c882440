package org.fedspzo.app;

import android.content.res.Resources;
import android.view.View;

/** What taking part has cost so far, and how the battery is. */
final class CostCard {
    private final View card;

    CostCard(View page) {
        card = page.findViewById(R.id.costs);
    }

    void show(Screen screen) {
        Resources resources = card.getResources();
        Views.show(card, screen.complete());
        Views.text(card, R.id.traffic,
                resources.getString(R.string.traffic, Text.bytes(screen.bytesUp), Text.bytes(screen.bytesDown)));
        Views.text(card, R.id.energy, energy(screen, resources));
        String battery = resources.getString(R.string.battery, Math.round(100 * screen.battery),
                resources.getString(screen.charging ? R.string.charging : R.string.not_charging));
        Views.text(card, R.id.battery, Double.isNaN(screen.temperature) ? battery
                : resources.getString(R.string.temperature, battery, Text.decimal(screen.temperature, 1)));
    }

    private static String energy(Screen screen, Resources resources) {
        if (Double.isNaN(screen.joules)) {
            return resources.getString(screen.charging ? R.string.energy_charging : R.string.energy_unknown);
        }
        String joules = Text.decimal(screen.joules, 1);
        return screen.measured < screen.helped ? resources.getString(R.string.energy_of, joules, screen.measured, screen.helped)
                : resources.getString(R.string.energy, joules);
    }
}
