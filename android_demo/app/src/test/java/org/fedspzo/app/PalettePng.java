package org.fedspzo.app;

import java.io.ByteArrayOutputStream;
import java.io.DataOutputStream;
import java.io.File;
import java.io.FileOutputStream;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.zip.CRC32;
import java.util.zip.Deflater;
import java.util.zip.DeflaterOutputStream;

/** Pictures of few colours in small files, which Android does not write, and which Gradle compiles without Java's ImageIO. */
final class PalettePng {
    private static final long SIGNATURE = 0x89504e470d0a1a0aL;
    private static final int COLOURS = 256;

    private PalettePng() {}

    /** Write a picture, of pixels as Android's Color has them, by its most frequent colours that are not alike. */
    static void write(File file, int[] pixels, int width) throws IOException {
        int height = pixels.length / width;
        Map<Integer, Integer> counts = new HashMap<>();
        for (int pixel : pixels) {
            counts.merge(pixel & 0xffffff, 1, Integer::sum);
        }
        List<Integer> palette = palette(counts);
        Map<Integer, Integer> indices = new HashMap<>();
        for (int colour : counts.keySet()) {
            indices.put(colour, nearest(palette, colour, COLOURS));
        }
        ByteArrayOutputStream colours = new ByteArrayOutputStream(), rows = new ByteArrayOutputStream();
        for (int colour : palette) {
            colours.write(colour >> 16);
            colours.write(colour >> 8);
            colours.write(colour);
        }
        try (DeflaterOutputStream packed = new DeflaterOutputStream(rows, new Deflater(Deflater.BEST_COMPRESSION))) {
            for (int y = 0; y < height; y++) {
                packed.write(0); // no filter
                for (int x = 0; x < width; x++) {
                    packed.write(indices.get(pixels[y * width + x] & 0xffffff));
                }
            }
        }
        ByteArrayOutputStream header = new ByteArrayOutputStream();
        DataOutputStream size = new DataOutputStream(header);
        size.writeInt(width);
        size.writeInt(height);
        size.write(new byte[] {8, 3, 0, 0, 0}); // bits, palette, the usual compression and filters, not interlaced
        try (DataOutputStream out = new DataOutputStream(new FileOutputStream(file))) {
            out.writeLong(SIGNATURE);
            chunk(out, "IHDR", header.toByteArray());
            chunk(out, "PLTE", colours.toByteArray());
            chunk(out, "IDAT", rows.toByteArray());
            chunk(out, "IEND", new byte[0]);
        }
    }

    private static void chunk(DataOutputStream out, String type, byte[] content) throws IOException {
        byte[] name = type.getBytes(StandardCharsets.US_ASCII);
        CRC32 sum = new CRC32();
        sum.update(name);
        sum.update(content);
        out.writeInt(content.length);
        out.write(name);
        out.write(content);
        out.writeInt((int) sum.getValue());
    }

    private static List<Integer> palette(Map<Integer, Integer> counts) {
        List<Integer> frequent = new ArrayList<>(counts.keySet()), found = new ArrayList<>();
        frequent.sort((a, b) -> counts.get(b) - counts.get(a) != 0 ? counts.get(b) - counts.get(a) : a - b);
        for (int apart = 24; found.size() < COLOURS && apart >= 0; apart -= 8) {
            for (int colour : frequent) {
                if (found.size() < COLOURS && nearest(found, colour, apart) < 0) {
                    found.add(colour);
                }
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

    /** Largest difference of red, green or blue. */
    static int distance(int one, int other) {
        return Math.max(Math.abs((one >> 16 & 255) - (other >> 16 & 255)),
                Math.max(Math.abs((one >> 8 & 255) - (other >> 8 & 255)), Math.abs((one & 255) - (other & 255))));
    }
}
