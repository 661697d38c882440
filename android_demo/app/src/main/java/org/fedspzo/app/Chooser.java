package org.fedspzo.app;

import android.content.ActivityNotFoundException;
import android.net.Uri;

import androidx.activity.result.ActivityResultCaller;
import androidx.activity.result.ActivityResultLauncher;
import androidx.activity.result.contract.ActivityResultContracts;

import java.util.function.BiConsumer;
import java.util.function.Consumer;

/** Has the person choose files and folders through the Storage Access Framework; made before the activity is. */
final class Chooser {
    private final ActivityResultLauncher<String[]> zip, examples;
    private final ActivityResultLauncher<Uri> folder;
    private final Consumer<String> complain;

    /** {@code take} gets what was chosen; {@code complain} why nothing can be. */
    Chooser(ActivityResultCaller caller, BiConsumer<Importer.Kind, Uri> take, Consumer<String> complain) {
        this.complain = complain;
        zip = caller.registerForActivityResult(
                new ActivityResultContracts.OpenDocument(), uri -> chosen(take, Importer.Kind.ZIP, uri));
        folder = caller.registerForActivityResult(
                new ActivityResultContracts.OpenDocumentTree(), uri -> chosen(take, Importer.Kind.FOLDER, uri));
        examples = caller.registerForActivityResult(
                new ActivityResultContracts.OpenDocument(), uri -> chosen(take, Importer.Kind.EXAMPLES, uri));
    }

    void zip() {
        launch(zip, new String[] {"application/zip"});
    }

    void folder() {
        launch(folder, null);
    }

    void examples() {
        launch(examples, new String[] {"*/*"});
    }

    private static void chosen(BiConsumer<Importer.Kind, Uri> take, Importer.Kind kind, Uri uri) {
        if (uri != null) {
            take.accept(kind, uri);
        }
    }

    private <T> void launch(ActivityResultLauncher<T> launcher, T input) {
        try {
            launcher.launch(input);
        } catch (ActivityNotFoundException error) { // a phone without a file picker
            complain.accept(String.valueOf(error.getMessage()));
        }
    }
}
