package org.fedspzo.app;

import android.security.keystore.KeyGenParameterSpec;
import android.security.keystore.KeyProperties;
import android.util.Base64;

import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.security.GeneralSecurityException;
import java.security.KeyStore;

import javax.crypto.Cipher;
import javax.crypto.KeyGenerator;
import javax.crypto.SecretKey;
import javax.crypto.spec.GCMParameterSpec;

/** Seals texts by AES-GCM with a key of the Android Keystore, which no app can read and no backup takes along. */
public final class Vault {
    private static final String STORE = "AndroidKeyStore", ALIAS = "fedspzo", CIPHER = "AES/GCM/NoPadding";
    private static final int NONCE_BYTES = 12, TAG_BITS = 128;

    /** The nonce and the enciphered text with its tag, in base64. */
    public String seal(String text) throws Exception {
        Cipher cipher = Cipher.getInstance(CIPHER);
        cipher.init(Cipher.ENCRYPT_MODE, key());
        byte[] sealed = cipher.doFinal(text.getBytes(StandardCharsets.UTF_8));
        byte[] nonce = cipher.getIV();
        if (nonce.length != NONCE_BYTES) {
            throw new GeneralSecurityException("a nonce of " + nonce.length + " bytes");
        }
        byte[] both = ByteBuffer.allocate(nonce.length + sealed.length).put(nonce).put(sealed).array();
        return Base64.encodeToString(both, Base64.NO_WRAP);
    }

    /** What was sealed; throws when it was altered, or the key is another. */
    public String open(String sealed) throws Exception {
        byte[] both = Base64.decode(sealed, Base64.NO_WRAP);
        Cipher cipher = Cipher.getInstance(CIPHER);
        cipher.init(Cipher.DECRYPT_MODE, key(), new GCMParameterSpec(TAG_BITS, both, 0, NONCE_BYTES));
        return new String(cipher.doFinal(both, NONCE_BYTES, both.length - NONCE_BYTES), StandardCharsets.UTF_8);
    }

    private static SecretKey key() throws Exception {
        KeyStore store = KeyStore.getInstance(STORE);
        store.load(null);
        SecretKey known = (SecretKey) store.getKey(ALIAS, null);
        if (known != null) {
            return known;
        }
        KeyGenerator generator = KeyGenerator.getInstance(KeyProperties.KEY_ALGORITHM_AES, STORE);
        int purposes = KeyProperties.PURPOSE_ENCRYPT | KeyProperties.PURPOSE_DECRYPT;
        generator.init(new KeyGenParameterSpec.Builder(ALIAS, purposes)
                .setBlockModes(KeyProperties.BLOCK_MODE_GCM)
                .setEncryptionPaddings(KeyProperties.ENCRYPTION_PADDING_NONE)
                .setKeySize(256)
                .build());
        return generator.generateKey();
    }
}
