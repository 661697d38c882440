package org.fedspzo.app;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertTrue;
import static org.junit.Assume.assumeNotNull;

import org.json.JSONObject;
import org.junit.Rule;
import org.junit.Test;
import org.junit.rules.TemporaryFolder;
import org.junit.runner.RunWith;
import org.robolectric.Robolectric;
import org.robolectric.RuntimeEnvironment;

import java.io.BufferedReader;
import java.io.File;
import java.io.InputStreamReader;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Base64;
import java.util.List;
import java.util.Set;
import java.util.stream.Collectors;
import java.util.stream.Stream;

import javax.crypto.spec.SecretKeySpec;

/** The app's process is killed while it trains (a JVM of its own, by SIGKILL), goes on in another, and is cut off there. */
@RunWith(PhoneRunner.class)
public final class KilledTest {
    private static final int ROUNDS = 40, BEFORE = 5;
    private static final String INVITATION = "fedspzo.invitation";

    @Rule
    public final TemporaryFolder folder = new TemporaryFolder();

    @Test
    public void aPhoneGoesOnAfterAKillAndACut() throws Exception {
        Phone phone = Phone.fresh();
        try (Outside.Federation federation = new Outside.Federation(folder.newFolder(), ROUNDS)) {
            trainUntilKilled(federation.invitation);
            JSONObject before = phone.status();
            assertEquals("phone-1", before.getString("device"));
            int known = before.getJSONArray("losses").length();
            assertTrue("" + known, known >= BEFORE);
            Robolectric.buildService(TrainingService.class).create().startCommand(0, 1);
            phone.waitFor("a round", status -> status.getJSONArray("losses").length() > known);
            federation.cut();
            int then = phone.status().getJSONArray("losses").length();
            phone.waitFor("a round after the cut", status -> status.getJSONArray("losses").length() > then);
            phone.waitFor("the end", status -> status.getBoolean("finished"));
            assertEquals(Set.of(phone.digest()), EndToEndTest.values(federation.end()));
        }
    }

    /** What the other JVM does: this phone's files and keys are those that it leaves. */
    @RunWith(PhoneRunner.class)
    public static final class Doomed {
        @Test
        public void trains() throws Exception {
            assumeNotNull(System.getProperty(INVITATION)); // Gradle, which runs all tests that it finds, finds this one, too
            Phone phone = Phone.ready(System.getProperty(INVITATION));
            System.out.println(phone.app.getNoBackupFilesDir());
            Keystore.KEYS.forEach((alias, key) ->
                    System.out.println(alias + " " + Base64.getEncoder().encodeToString(key.getEncoded())));
            Robolectric.buildService(TrainingService.class).create().startCommand(0, 1);
            phone.waitFor("rounds", status -> status.getJSONArray("losses").length() >= BEFORE);
            System.out.println("kill me");
            phone.waitFor("a kill", status -> false);
        }
    }

    private void trainUntilKilled(String invitation) throws Exception {
        List<String> command = new ArrayList<>(List.of(System.getProperty("java.home") + "/bin/java"));
        System.getProperties().forEach((name, value) -> {
            if (name.toString().matches("(robolectric|fedspzo)\\..*|java\\.library\\.path")) {
                command.add("-D" + name + "=" + value);
            }
        });
        command.addAll(List.of("-Djava.io.tmpdir=" + folder.newFolder(), "-D" + INVITATION + "=" + invitation, "-cp",
                System.getProperty("java.class.path"), Suite.class.getName(), Doomed.class.getName()));
        Process process = new ProcessBuilder(command).redirectError(ProcessBuilder.Redirect.INHERIT).start();
        try (BufferedReader said = new BufferedReader(new InputStreamReader(process.getInputStream()))) {
            List<String> lines = said.lines().takeWhile(line -> !line.equals("kill me")).collect(Collectors.toList());
            assertTrue(lines.toString(), process.isAlive());
            process.destroyForcibly().waitFor();
            for (String line : lines) {
                if (line.startsWith("/")) {
                    copyTree(new File(line).toPath(), RuntimeEnvironment.getApplication().getNoBackupFilesDir().toPath());
                } else if (line.startsWith("fedspzo ")) {
                    byte[] key = Base64.getDecoder().decode(line.split(" ")[1]);
                    Keystore.KEYS.put("fedspzo", new SecretKeySpec(key, "AES"));
                }
            }
        }
    }

    private static void copyTree(Path from, Path to) throws Exception {
        try (Stream<Path> all = Files.walk(from)) {
            for (Path file : all.filter(Files::isRegularFile).collect(Collectors.toList())) {
                Path target = to.resolve(from.relativize(file));
                Files.createDirectories(target.getParent());
                Files.copy(file, target);
            }
        }
    }
}
