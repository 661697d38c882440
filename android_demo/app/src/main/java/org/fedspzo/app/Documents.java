package org.fedspzo.app;

import android.content.ContentResolver;
import android.database.Cursor;
import android.net.Uri;
import android.provider.DocumentsContract;
import android.provider.DocumentsContract.Document;
import android.provider.OpenableColumns;

import java.io.File;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.nio.file.Files;

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
        try (InputStream in = resolver.openInputStream(uri); OutputStream out = new FileOutputStream(target)) {
            if (in == null) {
                throw new IOException("it does not open");
            }
            byte[] piece = new byte[1 << 20];
            long left = room;
            for (int count = in.read(piece); count >= 0; count = in.read(piece)) {
                left -= count;
                if (left < 0) {
                    throw new NoRoom();
                }
                out.write(piece, 0, count);
                told.copied(count);
            }
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
        if (!target.isDirectory() && !target.mkdirs()) {
            throw new IOException("no folder can be made in the app's storage");
        }
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

    private static String plain(String name) {
        String last = name.substring(name.lastIndexOf('/') + 1).replace('\0', '_');
        last = last.length() <= LONGEST ? last : last.substring(0, LONGEST - 4) + last.substring(last.length() - 4);
        return last.isEmpty() || last.equals(".") || last.equals("..") ? "document" : last;
    }
}
