package org.fedspzo.app;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertThrows;
import static org.junit.Assert.assertTrue;

import org.json.JSONObject;
import org.junit.Before;
import org.junit.Test;
import org.junit.runner.RunWith;

import java.io.File;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.RandomAccessFile;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.util.Arrays;
import java.util.zip.ZipEntry;
import java.util.zip.ZipException;
import java.util.zip.ZipOutputStream;

/** Files of all kinds that a person may choose, as the app's Python takes them. */
@RunWith(PhoneRunner.class)
public final class ImportTest {
    private Phone phone;

    @Before
    public void newPhone() {
        phone = Phone.fresh();
    }

    private File file(String name, byte[] content) throws IOException {
        File file = new File(phone.app.getCacheDir(), name);
        Files.write(file.toPath(), content);
        return file;
    }

    private File zip(String... entries) throws IOException {
        File file = new File(phone.app.getCacheDir(), "chosen.zip");
        try (ZipOutputStream zip = new ZipOutputStream(new FileOutputStream(file))) {
            for (String entry : entries) {
                zip.putNextEntry(new ZipEntry(entry));
                zip.write("{}".getBytes());
            }
        }
        return file;
    }

    private String refused(String command, File file) throws Exception {
        JSONObject answer = phone.ask(command, file.getPath());
        assertTrue(answer.toString(), answer.has("kind"));
        return answer.getString("kind");
    }

    private File bundle() throws IOException {
        return phone.unpacked(Outside.file("bundle.zip"));
    }

    @Test
    public void whatIsNoZipIsRefused() throws Exception {
        byte[] whole = Files.readAllBytes(Outside.file("bundle.zip").toPath());
        for (byte[] content : new byte[][] {new byte[0], "\u0089PNG\r\n".getBytes(), Arrays.copyOf(whole, whole.length / 2)}) {
            assertThrows(ZipException.class, () -> phone.unpacked(file("chosen.zip", content)));
        }
    }

    @Test
    public void aZipOfSomethingElseIsRefused() throws Exception {
        assertEquals("bundle.no-manifest-in-zip", refused("import_bundle", phone.unpacked(zip("readme.txt"))));
        assertTrue(refused("import_bundle", phone.unpacked(zip("manifest.json"))).startsWith("bundle."));
        assertTrue(phone.status().isNull("task"));
    }

    @Test
    public void noEntryLeadsOutOfTheBundle() throws Exception {
        File folder = phone.unpacked(zip("../../evil", "/evil", "a/../../../evil", "state/../../evil", "..\\evil"));
        for (File place = folder.getParentFile(); place != null; place = place.getParentFile()) {
            assertFalse(place.getPath(), new File(place, "evil").exists());
        }
        refused("import_bundle", folder);
        assertFalse(new File(phone.app.getNoBackupFilesDir(), "bundle").exists());
    }

    @Test
    public void anAlteredBundleLeavesTheOldOneThere() throws Exception {
        phone.done("import_bundle", bundle().getPath());
        File altered = bundle();
        try (RandomAccessFile file = new RandomAccessFile(new File(altered, "weights.safetensors"), "rw")) {
            file.seek(file.length() / 2);
            int old = file.read();
            file.seek(file.length() / 2);
            file.write(old ^ 1);
        }
        assertTrue(refused("import_bundle", altered).startsWith("bundle."));
        assertEquals("requests", phone.status().getJSONObject("task").getString("name"));
        phone.startAgain();
        assertEquals("requests", phone.status().getJSONObject("task").getString("name"));
    }

    @Test
    public void aBundleMayLieInAFolderAndIsThereOnce() throws Exception {
        File outer = new File(phone.app.getCacheDir(), "outer");
        assertTrue(outer.mkdir() && bundle().renameTo(new File(outer, "bundle")));
        phone.done("import_bundle", outer.getPath());
        assertEquals(3, phone.status().getJSONObject("task").getJSONArray("labels").length());
        assertFalse("used up", outer.exists());
    }

    @Test
    public void examplesOfNoKnownKindAreRefused() throws Exception {
        phone.done("import_bundle", bundle().getPath());
        for (String name : new String[] {"photo.png", "photo.jsonl", "photo.csv", "photo", "photo.tsv"}) {
            byte[] content = "\u0089PNG\r\n\u001a\n\u0000\u0000\u00ff".getBytes(StandardCharsets.ISO_8859_1);
            assertTrue(refused("import_examples", file(name, content)).startsWith("data."));
        }
        assertEquals(0, phone.status().getInt("examples"));
    }

    @Test
    public void examplesCountOnceTheyAreWhole() throws Exception {
        phone.done("import_bundle", bundle().getPath());
        String half = "{\"text\": \"wake me\", \"label\": \"alarm\"}\n{\"text\": \"wake me\", \"label\": \"dance\"}\n";
        refused("import_examples", file("half.jsonl", half.getBytes()));
        assertEquals(0, phone.status().getInt("examples"));
        phone.done("import_examples", phone.copy("examples.jsonl").getPath());
        assertEquals(12, phone.status().getInt("examples"));
    }
}
