package org.fedspzo.app;

import android.security.keystore.KeyGenParameterSpec;

import java.io.InputStream;
import java.io.OutputStream;
import java.security.GeneralSecurityException;
import java.security.Key;
import java.security.KeyStoreSpi;
import java.security.Provider;
import java.security.SecureRandom;
import java.security.Security;
import java.security.cert.Certificate;
import java.security.spec.AlgorithmParameterSpec;
import java.util.Collections;
import java.util.Date;
import java.util.Enumeration;
import java.util.HashMap;
import java.util.Map;

import javax.crypto.KeyGenerator;
import javax.crypto.KeyGeneratorSpi;
import javax.crypto.SecretKey;

/** In place of the phone's key store, which Robolectric lacks: a provider of that name with AES keys in this JVM's memory. */
final class Keystore extends Provider {
    static final String NAME = "AndroidKeyStore";
    static final Map<String, SecretKey> KEYS = new HashMap<>();
    /** As the app described the key that it asked for last. */
    static KeyGenParameterSpec asked;

    private Keystore() {
        super(NAME, "1", "keys in memory");
        putService(new Made(this, "KeyStore", NAME));
        putService(new Made(this, "KeyGenerator", "AES"));
    }

    /** A new phone's: no key in it. */
    static void install() {
        KEYS.clear();
        asked = null;
        Security.removeProvider(NAME);
        Security.addProvider(new Keystore());
    }

    /** Made here: the security framework does not find classes of the sandbox by name. */
    private static final class Made extends Provider.Service {
        Made(Provider provider, String type, String algorithm) {
            super(provider, type, algorithm, type, null, null);
        }

        @Override
        public Object newInstance(Object parameter) {
            return getType().equals("KeyStore") ? new Store() : new Generator();
        }
    }

    private static final class Generator extends KeyGeneratorSpi {
        @Override
        protected void engineInit(AlgorithmParameterSpec spec, SecureRandom random) {
            asked = (KeyGenParameterSpec) spec;
        }

        @Override
        protected void engineInit(SecureRandom random) {
            throw new UnsupportedOperationException();
        }

        @Override
        protected void engineInit(int bits, SecureRandom random) {
            throw new UnsupportedOperationException();
        }

        @Override
        protected SecretKey engineGenerateKey() {
            try {
                KeyGenerator generator = KeyGenerator.getInstance("AES", "SunJCE");
                generator.init(asked.getKeySize());
                SecretKey key = generator.generateKey();
                KEYS.put(asked.getKeystoreAlias(), key);
                return key;
            } catch (GeneralSecurityException impossible) {
                throw new IllegalStateException(impossible);
            }
        }
    }

    private static final class Store extends KeyStoreSpi {
        @Override
        public Key engineGetKey(String alias, char[] password) {
            return KEYS.get(alias);
        }

        @Override
        public boolean engineContainsAlias(String alias) {
            return KEYS.containsKey(alias);
        }

        @Override
        public boolean engineIsKeyEntry(String alias) {
            return KEYS.containsKey(alias);
        }

        @Override
        public Enumeration<String> engineAliases() {
            return Collections.enumeration(KEYS.keySet());
        }

        @Override
        public int engineSize() {
            return KEYS.size();
        }

        @Override
        public void engineDeleteEntry(String alias) {
            KEYS.remove(alias);
        }

        @Override
        public void engineLoad(InputStream in, char[] password) {}

        @Override
        public void engineStore(OutputStream out, char[] password) {}

        @Override
        public Certificate[] engineGetCertificateChain(String alias) {
            return null;
        }

        @Override
        public Certificate engineGetCertificate(String alias) {
            return null;
        }

        @Override
        public String engineGetCertificateAlias(Certificate certificate) {
            return null;
        }

        @Override
        public boolean engineIsCertificateEntry(String alias) {
            return false;
        }

        @Override
        public Date engineGetCreationDate(String alias) {
            return null;
        }

        @Override
        public void engineSetKeyEntry(String alias, Key key, char[] password, Certificate[] chain) {
            throw new UnsupportedOperationException();
        }

        @Override
        public void engineSetKeyEntry(String alias, byte[] key, Certificate[] chain) {
            throw new UnsupportedOperationException();
        }

        @Override
        public void engineSetCertificateEntry(String alias, Certificate certificate) {
            throw new UnsupportedOperationException();
        }
    }
}
