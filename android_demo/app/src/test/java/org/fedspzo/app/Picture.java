package org.fedspzo.app;

import android.app.Activity;
import android.app.Dialog;
import android.graphics.Bitmap;
import android.graphics.BitmapFactory;
import android.graphics.Canvas;
import android.graphics.Color;
import android.view.View;
import android.view.ViewGroup;
import android.widget.EditText;

import java.io.File;
import java.io.IOException;
import java.nio.file.Files;
import java.util.List;

/**
 * Pictures of pages, compared with those of {@code app/src/test/pictures}. With {@code FEDSPZO_PICTURES=write} in the
 * environment they are written again.
 */
final class Picture {
    /** Largest difference of a colour, of 255, that nobody sees; and the share of pixels that may differ more. */
    private static final int SEEN = 40;
    private static final double SHARE = 2e-5;
    private static final File FOLDER = new File(System.getProperty("fedspzo.project", "../.."),
            "android_demo/app/src/test/pictures");

    private Picture() {}

    /** Compare a page with its picture; where they differ the new one is left beside, as {@code NAME.new.png}. */
    static void check(String name, Activity page) throws IOException {
        check(name, draw(page, null));
    }

    /** The same of a page with a dialog above it. */
    static void check(String name, Activity page, Dialog dialog) throws IOException {
        check(name, draw(page, dialog));
    }

    /** The same of parts of pages, in columns on a ground. */
    static void check(String name, List<Bitmap> parts, int columns, int ground) throws IOException {
        check(name, together(parts, columns, ground));
    }

    private static void check(String name, Bitmap drawn) throws IOException {
        File file = new File(FOLDER, name + ".png"), beside = new File(FOLDER, name + ".new.png");
        if ("write".equals(System.getenv("FEDSPZO_PICTURES"))) {
            PalettePng.write(file, pixels(drawn), drawn.getWidth());
            return;
        }
        String wrong = difference(file, drawn);
        if (wrong.isEmpty()) {
            beside.delete();
            return;
        }
        PalettePng.write(beside, pixels(drawn), drawn.getWidth());
        throw new AssertionError(file + ": " + wrong + "; see " + beside + ", and write pictures again by FEDSPZO_PICTURES=write");
    }

    /** How a page differs from a picture; "" where nobody sees it. */
    static String difference(String name, Activity page) throws IOException {
        return difference(new File(FOLDER, name + ".png"), draw(page, null));
    }

    private static String difference(File file, Bitmap drawn) throws IOException {
        if (!file.exists()) {
            return "there is no such picture yet";
        }
        byte[] content = Files.readAllBytes(file.toPath());
        return difference(BitmapFactory.decodeByteArray(content, 0, content.length), drawn);
    }

    /** One view as it looks now. */
    static Bitmap draw(View view) {
        Bitmap bitmap = Bitmap.createBitmap(view.getWidth(), view.getHeight(), Bitmap.Config.ARGB_8888);
        settle(view);
        view.draw(new Canvas(bitmap));
        return bitmap;
    }

    private static Bitmap draw(Activity page, Dialog dialog) {
        Bitmap bitmap = draw(page.getWindow().getDecorView());
        if (dialog != null) {
            Canvas canvas = new Canvas(bitmap);
            View above = dialog.getWindow().getDecorView();
            settle(above);
            canvas.drawColor(Color.argb(dialog.getWindow().getAttributes().dimAmount, 0, 0, 0));
            canvas.translate((bitmap.getWidth() - above.getWidth()) / 2f, (bitmap.getHeight() - above.getHeight()) / 2f);
            above.draw(canvas);
        }
        return bitmap;
    }

    /** Parts of one width, each where the shortest column ends. */
    private static Bitmap together(List<Bitmap> parts, int columns, int ground) {
        int width = parts.get(0).getWidth(), space = width / 24;
        int[] ends = new int[columns];
        int[] left = new int[parts.size()], top = new int[parts.size()];
        for (int i = 0; i < parts.size(); i++) {
            int column = 0;
            for (int other = 1; other < columns; other++) {
                column = ends[other] < ends[column] ? other : column;
            }
            left[i] = space + column * (width + space);
            top[i] = space + ends[column];
            ends[column] = top[i] + parts.get(i).getHeight();
        }
        int height = 0;
        for (int end : ends) {
            height = Math.max(height, end + space);
        }
        Bitmap all = Bitmap.createBitmap(space + columns * (width + space), height, Bitmap.Config.ARGB_8888);
        Canvas canvas = new Canvas(all);
        canvas.drawColor(ground);
        for (int i = 0; i < parts.size(); i++) {
            canvas.drawBitmap(parts.get(i), left[i], top[i], null);
        }
        return all;
    }

    /** End animations, and hide what blinks. */
    private static void settle(View view) {
        view.jumpDrawablesToCurrentState();
        view.setVerticalScrollBarEnabled(false);
        if (view instanceof EditText) {
            ((EditText) view).setCursorVisible(false);
        }
        if (view instanceof ViewGroup) {
            for (int i = 0; i < ((ViewGroup) view).getChildCount(); i++) {
                settle(((ViewGroup) view).getChildAt(i));
            }
        }
    }

    private static String difference(Bitmap kept, Bitmap drawn) {
        if (kept.getWidth() != drawn.getWidth() || kept.getHeight() != drawn.getHeight()) {
            return "it is " + kept.getWidth() + " × " + kept.getHeight() + ", the page " + drawn.getWidth() + " × " + drawn.getHeight();
        }
        int[] before = pixels(kept), now = pixels(drawn);
        int other = 0;
        for (int i = 0; i < now.length; i++) {
            other += PalettePng.distance(before[i], now[i]) > SEEN ? 1 : 0;
        }
        double share = (double) other / now.length;
        return share <= SHARE ? "" : String.format("%.3f %% of the pixels differ", 100 * share);
    }

    private static int[] pixels(Bitmap picture) {
        int[] found = new int[picture.getWidth() * picture.getHeight()];
        picture.getPixels(found, 0, picture.getWidth(), 0, 0, picture.getWidth(), picture.getHeight());
        return found;
    }
}
