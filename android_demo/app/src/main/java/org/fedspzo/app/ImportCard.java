package org.fedspzo.app;

import android.content.res.Resources;
import android.view.View;

import com.google.android.material.progressindicator.LinearProgressIndicator;

/** How far an import is, and a way to cancel it while it is being copied. */
final class ImportCard {
    private static final int WHOLE = 1000;

    private final View card;
    private final LinearProgressIndicator bar;

    ImportCard(View page) {
        card = page.findViewById(R.id.importing);
        bar = card.findViewById(R.id.import_progress);
    }

    void show(Importer importer) {
        Views.show(card, importer.running());
        if (!importer.running()) {
            return;
        }
        boolean known = importer.total() > 0 && !importer.checking();
        Views.text(card, R.id.import_state, text(importer));
        Views.show(card.findViewById(R.id.import_cancel), !importer.checking());
        if (bar.isIndeterminate() == known) {
            Views.show(bar, false); // it may not change while it is seen
            bar.setIndeterminate(!known);
        }
        if (known) {
            bar.setProgressCompat((int) (WHOLE * importer.copied() / importer.total()), false);
        }
        Views.show(bar, true);
    }

    private String text(Importer importer) {
        Resources resources = card.getResources();
        return importer.checking() ? resources.getString(R.string.checking, importer.name())
                : importer.downloading() && importer.total() < 0 ? resources.getString(R.string.downloading_start)
                : importer.total() > 0 ? resources.getString(importer.downloading() ? R.string.downloading : R.string.copying, importer.name(),
                Text.bytes(importer.copied()), Text.bytes(importer.total()))
                : resources.getString(R.string.copying_unknown, importer.name(), Text.bytes(importer.copied()));
    }
}
