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
        Views.text(card, R.id.energy, Double.isNaN(screen.joules) ? resources.getString(R.string.energy_unknown)
                : resources.getString(R.string.energy, Text.decimal(screen.joules, 1)));
        String battery = resources.getString(R.string.battery, Math.round(100 * screen.battery),
                resources.getString(screen.charging ? R.string.charging : R.string.not_charging));
        Views.text(card, R.id.battery, Double.isNaN(screen.temperature) ? battery
                : resources.getString(R.string.temperature, battery, Text.decimal(screen.temperature, 1)));
    }
}
