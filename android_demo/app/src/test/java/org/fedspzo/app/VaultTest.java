package org.fedspzo.app;

import static org.junit.Assert.assertArrayEquals;
import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertNotEquals;
import static org.junit.Assert.assertThrows;
import static org.junit.Assert.assertTrue;

import android.security.keystore.KeyProperties;
import android.util.Base64;

import org.json.JSONObject;
import org.junit.Before;
import org.junit.Test;
import org.junit.runner.RunWith;

import java.io.File;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.GeneralSecurityException;
import java.util.List;
import java.util.stream.Collectors;
import java.util.stream.Stream;

/** With keys in memory in place of the phone's key store; AES-GCM is the JVM's. */
@RunWith(PhoneRunner.class)
public final class VaultTest {
    private final Vault vault = new Vault();

    @Before
    public void newPhone() {
        Keystore.install();
    }

    @Test
    public void whatIsSealedIsOpened() throws Exception {
        for (String text : List.of("", "secret", "schön ✓ 漢字", "x".repeat(100_000))) {
            assertEquals(text, new Vault().open(vault.seal(text)));
        }
        assertEquals(1, Keystore.KEYS.size());
    }

    @Test
    public void theKeyIsForAesGcmAlone() throws Exception {
        vault.seal("secret");
        assertEquals(256, Keystore.asked.getKeySize());
        assertArrayEquals(new String[] {KeyProperties.BLOCK_MODE_GCM}, Keystore.asked.getBlockModes());
        assertArrayEquals(new String[] {KeyProperties.ENCRYPTION_PADDING_NONE}, Keystore.asked.getEncryptionPaddings());
        assertEquals(KeyProperties.PURPOSE_ENCRYPT | KeyProperties.PURPOSE_DECRYPT, Keystore.asked.getPurposes());
        assertTrue(Keystore.asked.isRandomizedEncryptionRequired());
    }

    @Test
    public void noNonceIsUsedTwice() throws Exception {
        assertNotEquals(vault.seal("secret"), vault.seal("secret"));
    }

    @Test
    public void whatWasAlteredIsRefused() throws Exception {
        byte[] sealed = Base64.decode(vault.seal("secret"), Base64.NO_WRAP);
        for (int i = 0; i < sealed.length; i++) {
            byte[] altered = sealed.clone();
            altered[i] ^= 1;
            String text = Base64.encodeToString(altered, Base64.NO_WRAP);
            assertThrows(GeneralSecurityException.class, () -> vault.open(text));
        }
    }

    @Test
    public void anotherPhonesKeyDoesNotOpenIt() throws Exception {
        String sealed = vault.seal("secret");
        Keystore.install();
        assertThrows(GeneralSecurityException.class, () -> vault.open(sealed));
    }

    @Test
    public void anEmptiedKeyStoreIsSaidInASentence() throws Exception {
        Phone phone = Phone.ready(Phone.NOWHERE);
        Keystore.install();
        phone.startAgain();
        JSONObject status = phone.status();
        assertEquals("", status.getString("broker"));
        assertTrue(status.toString(), status.getString("message").contains("join with a new invitation"));
        phone.done("leave");
        phone.done("enrol", Phone.NOWHERE);
        assertEquals("phone-1", phone.status().getString("device"));
    }

    @Test
    public void noSecretLiesOpenInTheAppsFiles() throws Exception {
        Phone phone = Phone.ready(Phone.NOWHERE);
        phone.done("show_key");
        File root = phone.app.getDataDir();
        try (Stream<Path> all = Files.walk(root.toPath())) {
            List<Path> files = all.filter(Files::isRegularFile).collect(Collectors.toList());
            assertTrue("" + files, files.stream().anyMatch(file -> file.endsWith("invitation.sealed")));
            for (Path file : files) {
                String content = new String(Files.readAllBytes(file), StandardCharsets.ISO_8859_1);
                assertFalse(file.toString(), content.contains(Phone.SECRET));
                assertFalse(file.toString(), file.endsWith("state/key") || content.contains("PRIVATE KEY"));
            }
        }
    }
}
