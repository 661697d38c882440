package org.fedspzo.app;

import android.app.Activity;
import android.app.Dialog;
import android.graphics.Bitmap;
import android.graphics.Canvas;
import android.graphics.Color;
import android.view.View;
import android.view.ViewGroup;
import android.widget.EditText;

import java.awt.image.BufferedImage;
import java.awt.image.IndexColorModel;
import java.io.File;
import java.io.IOException;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

import javax.imageio.ImageIO;

/**
 * Pictures of pages, compared with those of {@code app/src/test/pictures}. With {@code FEDSPZO_PICTURES=write} in the
 * environment they are written again.
 */
final class Picture {
    /** Largest difference of a colour, of 255, that nobody sees; and the share of pixels that may differ more. */
    private static final int SEEN = 40;
    private static final double SHARE = 2e-5;
    private static final int COLOURS = 256;
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

    private static void check(String name, BufferedImage drawn) throws IOException {
        File file = new File(FOLDER, name + ".png"), beside = new File(FOLDER, name + ".new.png");
        if ("write".equals(System.getenv("FEDSPZO_PICTURES"))) {
            ImageIO.write(withPalette(drawn), "png", file);
            return;
        }
        String wrong = difference(file, drawn);
        if (wrong.isEmpty()) {
            beside.delete();
            return;
        }
        ImageIO.write(withPalette(drawn), "png", beside);
        throw new AssertionError(file + ": " + wrong + "; see " + beside + ", and write pictures again by FEDSPZO_PICTURES=write");
    }

    /** How a page differs from a picture; "" where nobody sees it. */
    static String difference(String name, Activity page) throws IOException {
        return difference(new File(FOLDER, name + ".png"), draw(page, null));
    }

    private static String difference(File file, BufferedImage drawn) throws IOException {
        return file.exists() ? difference(ImageIO.read(file), drawn) : "there is no such picture yet";
    }

    private static BufferedImage draw(Activity page, Dialog dialog) {
        View root = page.getWindow().getDecorView();
        Bitmap bitmap = Bitmap.createBitmap(root.getWidth(), root.getHeight(), Bitmap.Config.ARGB_8888);
        Canvas canvas = new Canvas(bitmap);
        settle(root);
        root.draw(canvas);
        if (dialog != null) {
            View above = dialog.getWindow().getDecorView();
            settle(above);
            canvas.drawColor(Color.argb(dialog.getWindow().getAttributes().dimAmount, 0, 0, 0));
            canvas.translate((root.getWidth() - above.getWidth()) / 2f, (root.getHeight() - above.getHeight()) / 2f);
            above.draw(canvas);
        }
        int[] pixels = new int[bitmap.getWidth() * bitmap.getHeight()];
        bitmap.getPixels(pixels, 0, bitmap.getWidth(), 0, 0, bitmap.getWidth(), bitmap.getHeight());
        BufferedImage image = new BufferedImage(bitmap.getWidth(), bitmap.getHeight(), BufferedImage.TYPE_INT_RGB);
        image.setRGB(0, 0, bitmap.getWidth(), bitmap.getHeight(), pixels, 0, bitmap.getWidth());
        return image;
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

    private static String difference(BufferedImage kept, BufferedImage drawn) {
        if (kept.getWidth() != drawn.getWidth() || kept.getHeight() != drawn.getHeight()) {
            return "it is " + kept.getWidth() + " × " + kept.getHeight() + ", the page " + drawn.getWidth() + " × " + drawn.getHeight();
        }
        int other = 0;
        for (int y = 0; y < kept.getHeight(); y++) {
            for (int x = 0; x < kept.getWidth(); x++) {
                other += distance(kept.getRGB(x, y), drawn.getRGB(x, y)) > SEEN ? 1 : 0;
            }
        }
        double share = (double) other / kept.getWidth() / kept.getHeight();
        return share <= SHARE ? "" : String.format("%.3f %% of the pixels differ", 100 * share);
    }

    private static int distance(int one, int other) {
        return Math.max(Math.abs((one >> 16 & 255) - (other >> 16 & 255)),
                Math.max(Math.abs((one >> 8 & 255) - (other >> 8 & 255)), Math.abs((one & 255) - (other & 255))));
    }

    /** With the most frequent colours that are not alike, so that the file is small. */
    private static BufferedImage withPalette(BufferedImage image) {
        Map<Integer, Integer> counts = new HashMap<>();
        for (int y = 0; y < image.getHeight(); y++) {
            for (int x = 0; x < image.getWidth(); x++) {
                counts.merge(image.getRGB(x, y) & 0xffffff, 1, Integer::sum);
            }
        }
        List<Integer> frequent = new ArrayList<>(counts.keySet());
        frequent.sort((a, b) -> counts.get(b) - counts.get(a) != 0 ? counts.get(b) - counts.get(a) : a - b);
        List<Integer> palette = new ArrayList<>();
        for (int apart = 24; palette.size() < COLOURS && apart >= 0; apart -= 8) {
            for (int colour : frequent) {
                if (palette.size() < COLOURS && nearest(palette, colour, apart) < 0) {
                    palette.add(colour);
                }
            }
        }
        int[] colours = palette.stream().mapToInt(Integer::intValue).toArray();
        IndexColorModel model = new IndexColorModel(8, colours.length, colours, 0, false, -1, java.awt.image.DataBuffer.TYPE_BYTE);
        BufferedImage found = new BufferedImage(image.getWidth(), image.getHeight(), BufferedImage.TYPE_BYTE_INDEXED, model);
        Map<Integer, Integer> indices = new HashMap<>();
        for (int colour : counts.keySet()) {
            indices.put(colour, nearest(palette, colour, 256));
        }
        for (int y = 0; y < image.getHeight(); y++) {
            for (int x = 0; x < image.getWidth(); x++) {
                found.getRaster().setSample(x, y, 0, indices.get(image.getRGB(x, y) & 0xffffff));
            }
        }
        return found;
    }

    /** Index of the nearest colour that is at most so far; -1 where none is. */
    private static int nearest(List<Integer> palette, int colour, int most) {
        int found = -1, least = most + 1;
        for (int i = 0; i < palette.size(); i++) {
            int far = distance(palette.get(i), colour);
            if (far < least) {
                least = far;
                found = i;
            }
        }
        return found;
    }
}
