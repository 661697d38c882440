package org.fedspzo.app;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertThrows;
import static org.junit.Assert.assertTrue;
import static org.robolectric.Shadows.shadowOf;

import android.content.ContentProvider;
import android.content.ContentResolver;
import android.content.ContentValues;
import android.database.Cursor;
import android.database.MatrixCursor;
import android.net.Uri;
import android.provider.DocumentsContract;
import android.provider.DocumentsContract.Document;
import android.provider.OpenableColumns;

import org.junit.Rule;
import org.junit.Test;
import org.junit.rules.TemporaryFolder;
import org.junit.runner.RunWith;
import org.robolectric.Robolectric;
import org.robolectric.RuntimeEnvironment;

import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.File;
import java.io.IOException;
import java.io.InputStream;
import java.nio.file.Files;
import java.util.Arrays;
import java.util.zip.ZipEntry;
import java.util.zip.ZipOutputStream;

/** What a provider of documents gives, which may be any app: names, sizes and trees of all kinds. */
@RunWith(PhoneRunner.class)
public final class DocumentsTest {
    private static final Uri FILE = Uri.parse("content://names/file");

    @Rule
    public final TemporaryFolder folder = new TemporaryFolder();

    private final ContentResolver resolver = RuntimeEnvironment.getApplication().getContentResolver();

    @Test
    public void noNameLeadsOutOfTheFolder() throws Exception {
        Named provider = Robolectric.setupContentProvider(Named.class, "names");
        for (String[] pair : new String[][] {
            {"examples.csv", "examples.csv"}, {"../../state/key", "key"}, {"/etc/passwd", "passwd"}, {"..", "document"},
            {"a/..", "document"}, {".", "document"}, {"a/", "document"}, {"", "document"}, {null, "document"},
            {"a\0b", "a_b"}, {"x".repeat(5000) + ".csv", "x".repeat(96) + ".csv"},
        }) {
            provider.name = pair[0];
            String name = Documents.name(resolver, FILE);
            assertEquals(pair[1], name);
            assertEquals(folder.getRoot(), new File(folder.getRoot(), name).getCanonicalFile().getParentFile());
        }
    }

    @Test
    public void aProviderWithoutNamesGivesOne() throws Exception {
        assertEquals("document", Documents.name(resolver, Uri.parse("content://nobody/file")));
    }

    @Test
    public void aFileIsCopied() throws Exception {
        byte[] content = new byte[3_000_000];
        Arrays.fill(content, (byte) 7);
        File target = new File(folder.getRoot(), "copy");
        shadowOf(resolver).registerInputStream(FILE, new ByteArrayInputStream(content));
        Documents.copyFile(resolver, FILE, target, bytes -> {});
        assertEquals(content.length, target.length());
    }

    @Test
    public void aFileWithoutEndStopsWhereTheRoomDoes() {
        shadowOf(resolver).registerInputStream(FILE, new InputStream() {
            @Override
            public int read() {
                return 0;
            }
        });
        File target = new File(folder.getRoot(), "copy");
        IOException refused = assertThrows(IOException.class, () -> Documents.copyFile(resolver, FILE, target, 5 << 20, bytes -> {}));
        assertTrue(refused.getMessage(), refused.getMessage().contains("no room"));
        assertTrue(target.length() <= 5 << 20);
    }

    /** A zip file with one entry of so many zeros. */
    static byte[] zip(String name, int size) {
        ByteArrayOutputStream content = new ByteArrayOutputStream();
        try (ZipOutputStream zip = new ZipOutputStream(content)) {
            zip.putNextEntry(new ZipEntry("empty/"));
            zip.putNextEntry(new ZipEntry(name));
            zip.write(new byte[size]);
        } catch (IOException impossible) {
            throw new IllegalStateException(impossible);
        }
        return content.toByteArray();
    }

    @Test
    public void aZipIsUnpackedAsItIsRead() throws Exception {
        byte[] content = zip("graphs/one", 3_000_000);
        File target = new File(folder.getRoot(), "bundle");
        shadowOf(resolver).registerInputStream(FILE, new ByteArrayInputStream(content));
        int[] read = new int[1];
        Documents.unpack(resolver, FILE, target, bytes -> read[0] += bytes);
        assertEquals(3_000_000, new File(target, "graphs/one").length());
        assertTrue(new File(target, "empty").isDirectory());
        assertEquals("what is read is counted, and not what comes of it", content.length, read[0]);
        assertEquals("and the file is not kept", 1, folder.getRoot().list().length);
    }

    @Test
    public void aZipThatWouldFillThePhoneStopsWhereTheRoomDoes() {
        shadowOf(resolver).registerInputStream(FILE, new ByteArrayInputStream(zip("bomb", 20_000_000)));
        File target = new File(folder.getRoot(), "bundle");
        assertThrows(Documents.NoRoom.class, () -> Documents.unpack(resolver, FILE, target, 5 << 20, bytes -> {}));
        assertTrue(new File(target, "bomb").length() <= 5 << 20);
    }

    @Test
    public void foldersOfAZipWithoutEndAreRefused() {
        shadowOf(resolver).registerInputStream(FILE, new ByteArrayInputStream(zip("a/".repeat(9) + "b", 1)));
        File target = new File(folder.getRoot(), "bundle");
        IOException refused = assertThrows(IOException.class, () -> Documents.unpack(resolver, FILE, target, bytes -> {}));
        assertTrue(refused.getMessage(), refused.getMessage().contains("deep"));
    }

    @Test
    public void aFolderIsCopied() throws Exception {
        Robolectric.setupContentProvider(Tree.class, "tree");
        Uri tree = DocumentsContract.buildTreeDocumentUri("tree", "top");
        for (String name : new String[] {"a", "sub/b"}) {
            shadowOf(resolver).registerInputStream(
                    DocumentsContract.buildDocumentUriUsingTree(tree, name), new ByteArrayInputStream(name.getBytes()));
        }
        File target = new File(folder.getRoot(), "copy");
        Documents.copyTree(resolver, tree, target, bytes -> {});
        assertEquals("a", new String(Files.readAllBytes(new File(target, "a").toPath())));
        assertEquals("sub/b", new String(Files.readAllBytes(new File(target, "sub/b").toPath())));
    }

    @Test
    public void foldersInFoldersWithoutEndAreRefused() {
        Robolectric.setupContentProvider(Tree.class, "tree");
        Uri tree = DocumentsContract.buildTreeDocumentUri("tree", "endless");
        File target = new File(folder.getRoot(), "copy");
        IOException refused = assertThrows(IOException.class, () -> Documents.copyTree(resolver, tree, target, bytes -> {}));
        assertTrue(refused.getMessage(), refused.getMessage().contains("deep"));
    }

    @Test
    public void aFolderIsDeletedAndNotWhatItsLinksPointTo() throws Exception {
        File kept = folder.newFile("kept"), gone = folder.newFolder("gone");
        Files.write(new File(gone, "file").toPath(), new byte[1]);
        Files.createSymbolicLink(new File(gone, "link").toPath(), kept.getParentFile().toPath());
        Documents.delete(gone);
        assertFalse(gone.exists());
        assertTrue(kept.exists());
    }

    /** Gives one name. */
    public static class Named extends ContentProvider {
        String name;

        @Override
        public Cursor query(Uri uri, String[] columns, String where, String[] values, String order) {
            MatrixCursor cursor = new MatrixCursor(new String[] {OpenableColumns.DISPLAY_NAME});
            cursor.addRow(new Object[] {name});
            return cursor;
        }

        @Override
        public boolean onCreate() {
            return true;
        }

        @Override
        public String getType(Uri uri) {
            return null;
        }

        @Override
        public Uri insert(Uri uri, ContentValues values) {
            return null;
        }

        @Override
        public int delete(Uri uri, String where, String[] values) {
            return 0;
        }

        @Override
        public int update(Uri uri, ContentValues values, String where, String[] values2) {
            return 0;
        }
    }

    /** "top" has a file and a folder; "endless" has itself. */
    public static final class Tree extends Named {
        @Override
        public Cursor query(Uri uri, String[] columns, String where, String[] values, String order) {
            MatrixCursor cursor = new MatrixCursor(new String[] {
                Document.COLUMN_DOCUMENT_ID, Document.COLUMN_DISPLAY_NAME, Document.COLUMN_MIME_TYPE
            });
            switch (DocumentsContract.getDocumentId(uri)) {
                case "top":
                    cursor.addRow(new Object[] {"a", "a", "text/plain"});
                    cursor.addRow(new Object[] {"sub", "sub", Document.MIME_TYPE_DIR});
                    break;
                case "sub":
                    cursor.addRow(new Object[] {"sub/b", "b", "text/plain"});
                    break;
                default:
                    cursor.addRow(new Object[] {"endless", "endless", Document.MIME_TYPE_DIR});
            }
            return cursor;
        }
    }
}
