package org.fedspzo.app;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
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

    @Test
    public void whatIsNoZipIsRefused() throws Exception {
        assertEquals("bundle.not-a-zip", refused("import_bundle", file("empty", new byte[0])));
        assertEquals("bundle.not-a-zip", refused("import_bundle", file("photo.png", "\u0089PNG\r\n".getBytes())));
        byte[] whole = Files.readAllBytes(Outside.file("bundle.zip").toPath());
        assertEquals("bundle.not-a-zip", refused("import_bundle", file("half.zip", Arrays.copyOf(whole, whole.length / 2))));
        assertTrue(phone.status().isNull("task"));
    }

    @Test
    public void aZipOfSomethingElseIsRefused() throws Exception {
        assertEquals("bundle.no-manifest-in-zip", refused("import_bundle", zip("readme.txt")));
        assertEquals("bundle.no-manifest-in-zip", refused("import_bundle", zip()));
        assertTrue(refused("import_bundle", zip("manifest.json")).startsWith("bundle."));
    }

    @Test
    public void noEntryLeadsOutOfTheBundle() throws Exception {
        File root = phone.app.getNoBackupFilesDir();
        refused("import_bundle", zip("../../evil", "/evil", "a/../../../evil", "state/../../evil", "..\\evil"));
        for (File place = root; place != null; place = place.getParentFile()) {
            assertFalse(place.getPath(), new File(place, "evil").exists());
        }
        assertFalse(new File(root, "bundle").exists());
    }

    /** The directory of the zip says 2 GB and more for each of 3,000 entries. */
    @Test
    public void aZipThatWouldFillThePhoneIsRefusedBeforeItIsUnpacked() throws Exception {
        String[] names = new String[3000];
        for (int i = 0; i < names.length; i++) {
            names[i] = "file-" + i;
        }
        File bomb = zip(names);
        byte[] content = Files.readAllBytes(bomb.toPath());
        for (int i = 0; i + 46 < content.length; i++) { // the size in each entry of the zip's directory
            if (content[i] == 'P' && content[i + 1] == 'K' && content[i + 2] == 1 && content[i + 3] == 2) {
                content[i + 27] = 0x7f;
            }
        }
        assertEquals("bundle.no-room", refused("import_bundle", file("bomb.zip", content)));
        assertFalse(new File(phone.app.getNoBackupFilesDir(), "bundle.partial").exists());
    }

    @Test
    public void anAlteredBundleLeavesTheOldOneThere() throws Exception {
        phone.done("import_bundle", phone.copy("bundle.zip").getPath());
        File altered = phone.copy("bundle.zip");
        try (RandomAccessFile file = new RandomAccessFile(altered, "rw")) {
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
    public void aBundleMayLieInAFolderOfTheZip() throws Exception {
        phone.done("import_bundle", phone.copy("bundle.zip").getPath());
        assertEquals(3, phone.status().getJSONObject("task").getJSONArray("labels").length());
        assertFalse("used up", new File(phone.app.getCacheDir(), "bundle.zip").exists());
    }

    @Test
    public void examplesOfNoKnownKindAreRefused() throws Exception {
        phone.done("import_bundle", phone.copy("bundle.zip").getPath());
        for (String name : new String[] {"photo.png", "photo.jsonl", "photo.csv", "photo", "photo.tsv"}) {
            byte[] content = "\u0089PNG\r\n\u001a\n\u0000\u0000\u00ff".getBytes(StandardCharsets.ISO_8859_1);
            assertTrue(refused("import_examples", file(name, content)).startsWith("data."));
        }
        assertEquals(0, phone.status().getInt("examples"));
    }

    @Test
    public void examplesCountOnceTheyAreWhole() throws Exception {
        phone.done("import_bundle", phone.copy("bundle.zip").getPath());
        String half = "{\"text\": \"wake me\", \"label\": \"alarm\"}\n{\"text\": \"wake me\", \"label\": \"dance\"}\n";
        refused("import_examples", file("half.jsonl", half.getBytes()));
        assertEquals(0, phone.status().getInt("examples"));
        phone.done("import_examples", phone.copy("examples.jsonl").getPath());
        assertEquals(12, phone.status().getInt("examples"));
    }
}
