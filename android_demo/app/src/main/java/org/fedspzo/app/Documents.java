package org.fedspzo.app;

import android.content.ContentResolver;
import android.database.Cursor;
import android.net.Uri;
import android.provider.DocumentsContract;
import android.provider.DocumentsContract.Document;
import android.provider.OpenableColumns;

import java.io.BufferedInputStream;
import java.io.EOFException;
import java.io.File;
import java.io.FileOutputStream;
import java.io.FilterInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.nio.file.Files;
import java.util.zip.ZipEntry;
import java.util.zip.ZipException;
import java.util.zip.ZipInputStream;

/** Copies what was chosen through the Storage Access Framework into the app's own storage. */
final class Documents {
    /** Is told of each piece that is copied. */
    interface Count {
        /** Throws to end the copying. */
        void copied(int bytes) throws IOException;
    }

    /** It would leave less than {@link #LEFT_FREE} on the phone. */
    static final class NoRoom extends IOException {
        private static final long serialVersionUID = 1;

        NoRoom() {
            super("there is no room for it");
        }
    }

    /** Bytes that an import leaves to the phone. */
    private static final long LEFT_FREE = 64 << 20;
    /** Folders in folders of a bundle, with room for others; characters of a name. */
    private static final int DEEPEST = 8, LONGEST = 100;
    /** Bytes that are read at once. */
    private static final int PIECE = 1 << 20;

    private Documents() {}

    /** The document's name, without anything that leads out of a folder. */
    static String name(ContentResolver resolver, Uri uri) {
        try (Cursor cursor = resolver.query(uri, new String[] {OpenableColumns.DISPLAY_NAME}, null, null, null)) {
            String name = cursor != null && cursor.moveToFirst() ? cursor.getString(0) : null;
            return plain(name == null ? "document" : name);
        }
    }

    /** Throws IOException when it cannot be read, or {@link NoRoom}. */
    static void copyFile(ContentResolver resolver, Uri uri, File target, Count told) throws IOException {
        copyFile(resolver, uri, target, target.getAbsoluteFile().getParentFile().getUsableSpace() - LEFT_FREE, told);
    }

    static void copyFile(ContentResolver resolver, Uri uri, File target, long room, Count told) throws IOException {
        try (InputStream in = counted(open(resolver, uri), told)) {
            copy(in, target, room);
        }
    }

    /**
     * Unpack a zip file while it is read, so that the app never holds the file itself. Throws IOException when it cannot be
     * read, {@link NoRoom}, or ZipException when it is no zip file, or not a whole one.
     */
    static void unpack(ContentResolver resolver, Uri uri, File target, Count told) throws IOException {
        unpack(resolver, uri, target, target.getAbsoluteFile().getParentFile().getUsableSpace() - LEFT_FREE, told);
    }

    static void unpack(ContentResolver resolver, Uri uri, File target, long room, Count told) throws IOException {
        InputStream pieces = new BufferedInputStream(counted(open(resolver, uri), told), PIECE);
        try (ZipInputStream zip = new ZipInputStream(pieces)) {
            ZipEntry entry = zip.getNextEntry();
            if (entry == null) {
                throw new ZipException("it is no zip file");
            }
            for (long left = room; entry != null; entry = zip.getNextEntry()) {
                File file = below(target, entry.getName());
                makeFolder(entry.isDirectory() ? file : file.getParentFile());
                left = entry.isDirectory() ? left : copy(zip, file, left);
            }
        } catch (EOFException cut) {
            throw new ZipException("it is not whole");
        }
    }

    static void copyTree(ContentResolver resolver, Uri tree, File target, Count told) throws IOException {
        copyFolder(resolver, tree, DocumentsContract.getTreeDocumentId(tree), target, DEEPEST, told);
    }

    static void delete(File file) {
        File[] inside = file.listFiles();
        for (File child : inside == null || Files.isSymbolicLink(file.toPath()) ? new File[0] : inside) {
            delete(child);
        }
        file.delete();
    }

    private static void copyFolder(ContentResolver resolver, Uri tree, String id, File target, int deeper, Count told)
            throws IOException {
        if (deeper == 0) {
            throw new IOException("its folders are too deep");
        }
        makeFolder(target);
        String[] columns = {Document.COLUMN_DOCUMENT_ID, Document.COLUMN_DISPLAY_NAME, Document.COLUMN_MIME_TYPE};
        Uri children = DocumentsContract.buildChildDocumentsUriUsingTree(tree, id);
        try (Cursor cursor = resolver.query(children, columns, null, null, null)) {
            while (cursor != null && cursor.moveToNext()) {
                File file = new File(target, plain(cursor.getString(1)));
                if (Document.MIME_TYPE_DIR.equals(cursor.getString(2))) {
                    copyFolder(resolver, tree, cursor.getString(0), file, deeper - 1, told);
                } else {
                    Uri child = DocumentsContract.buildDocumentUriUsingTree(tree, cursor.getString(0));
                    copyFile(resolver, child, file, told);
                }
            }
        }
    }

    private static InputStream open(ContentResolver resolver, Uri uri) throws IOException {
        InputStream in = resolver.openInputStream(uri);
        if (in == null) {
            throw new IOException("it does not open");
        }
        return in;
    }

    private static InputStream counted(InputStream in, Count told) {
        return new FilterInputStream(in) {
            @Override
            public int read(byte[] piece, int at, int most) throws IOException {
                int count = super.read(piece, at, most);
                if (count > 0) {
                    told.copied(count);
                }
                return count;
            }
        };
    }

    /** Write what is read to a file; what then is left of the room. */
    private static long copy(InputStream in, File target, long room) throws IOException {
        long left = room;
        try (OutputStream out = new FileOutputStream(target)) {
            byte[] piece = new byte[PIECE];
            for (int count = in.read(piece); count >= 0; count = in.read(piece)) {
                left -= count;
                if (left < 0) {
                    throw new NoRoom();
                }
                out.write(piece, 0, count);
            }
        }
        return left;
    }

    private static void makeFolder(File folder) throws IOException {
        if (!folder.isDirectory() && !folder.mkdirs()) {
            throw new IOException("no folder can be made in the app's storage");
        }
    }

    /** Where an entry of a zip file belongs, whatever it is called: below a folder. */
    private static File below(File folder, String name) throws IOException {
        String[] parts = name.split("/");
        if (parts.length > DEEPEST) {
            throw new IOException("its folders are too deep");
        }
        File found = folder;
        for (String part : parts) {
            found = new File(found, plain(part));
        }
        return found;
    }

    private static String plain(String name) {
        String last = name.substring(name.lastIndexOf('/') + 1).replace('\0', '_');
        last = last.length() <= LONGEST ? last : last.substring(0, LONGEST - 4) + last.substring(last.length() - 4);
        return last.isEmpty() || last.equals(".") || last.equals("..") ? "document" : last;
    }
}
