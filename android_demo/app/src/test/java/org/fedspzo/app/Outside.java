package org.fedspzo.app;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertNotNull;

import org.json.JSONException;
import org.json.JSONObject;

import java.io.BufferedReader;
import java.io.File;
import java.io.IOException;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/** What is not the phone: a bundle's files, and a federation of processes with a real mosquitto over TLS. */
final class Outside {
    /** With bundle.zip, bundle/ and examples.jsonl. */
    private static File files;

    private Outside() {}

    static synchronized File file(String name) throws IOException {
        if (files == null) {
            files = new File(new Program("android_bundle.py").read());
        }
        return new File(files, name);
    }

    /** A broker, a server of two devices, and the other device; see android_federation.py. */
    static final class Federation implements AutoCloseable {
        final String invitation;
        private final Program program;

        Federation(File folder, int rounds) throws IOException {
            program = new Program("android_federation.py", folder.getPath(), "" + rounds);
            invitation = program.read();
        }

        /** Reset the phone's connection. */
        void cut() throws IOException {
            assertEquals("1", program.ask("cut"));
        }

        /** The hash of the weights after the job's end: as the server says, its journal gives, and each device says. */
        JSONObject end() throws IOException, JSONException {
            return new JSONObject(program.ask("end"));
        }

        @Override
        public void close() throws IOException {
            program.close();
        }
    }

    /** A program of tests/support, which answers a line by a line. */
    private static final class Program {
        private final Process process;
        private final BufferedReader said;

        Program(String... command) throws IOException {
            List<String> all = new ArrayList<>(Arrays.asList(command));
            all.set(0, System.getProperty("fedspzo.project") + "/tests/support/" + command[0]);
            all.add(0, System.getProperty("fedspzo.python"));
            ProcessBuilder builder = new ProcessBuilder(all).redirectError(ProcessBuilder.Redirect.INHERIT);
            builder.environment().remove("PYTHONPATH"); // that of the Python in this JVM
            builder.environment().remove("LD_LIBRARY_PATH");
            process = builder.start();
            said = new BufferedReader(new InputStreamReader(process.getInputStream(), StandardCharsets.UTF_8));
        }

        String ask(String line) throws IOException {
            process.getOutputStream().write((line + "\n").getBytes(StandardCharsets.UTF_8));
            process.getOutputStream().flush();
            return read();
        }

        String read() throws IOException {
            String line = said.readLine();
            assertNotNull("the program ended", line);
            return line;
        }

        void close() throws IOException {
            process.getOutputStream().close();
            try {
                process.waitFor();
            } catch (InterruptedException error) {
                process.destroyForcibly();
            }
        }
    }
}
