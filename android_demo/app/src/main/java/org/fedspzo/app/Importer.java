package org.fedspzo.app;

import android.app.Application;
import android.content.ContentResolver;
import android.database.Cursor;
import android.net.Uri;
import android.os.Handler;
import android.os.Looper;
import android.os.SystemClock;
import android.provider.OpenableColumns;

import androidx.annotation.NonNull;
import androidx.lifecycle.AndroidViewModel;

import org.json.JSONArray;
import org.json.JSONObject;

import java.io.File;
import java.io.IOException;
import java.util.zip.ZipException;

/** Copies what was chosen into the app, or has a bundle downloaded, for Python to take; continues while the screen is turned. */
public final class Importer extends AndroidViewModel {
    /** What is imported. */
    enum Kind { ZIP, FOLDER, EXAMPLES, DOWNLOAD }

    /** Is told on the main thread. */
    interface Listener {
        /** There is more of it, or it is over. */
        void importing();

        /** It is over; an "error" in the answer says why, and null that it was cancelled. */
        void imported(Kind kind, JSONObject answer);
    }

    private static final long TELL_MS = 100, WATCH_MS = 300;

    private final Handler main = new Handler(Looper.getMainLooper());
    private Listener listener;
    private volatile boolean cancelled;
    /** Where a download runs; what is being imported, or null; how much of it is copied, of how much (-1 unknown); whether Python checks it. */
    private Host downloader;
    private Kind kind;
    private String name;
    private long copied, total, toldAt;
    private boolean checking;
    /** What came of it while nobody listened. */
    private Runnable untold;

    public Importer(@NonNull Application application) {
        super(application);
    }

    void listen(Listener listener) {
        this.listener = listener;
        if (listener != null && untold != null) {
            Runnable told = untold;
            untold = null;
            told.run();
        }
    }

    boolean running() {
        return kind != null;
    }

    String name() {
        return name;
    }

    long copied() {
        return copied;
    }

    /** Bytes in all, or -1. */
    long total() {
        return total;
    }

    boolean downloading() {
        return kind == Kind.DOWNLOAD;
    }

    /** Whether all is copied, so that nothing can be cancelled any more. */
    boolean checking() {
        return checking;
    }

    void start(Host host, Kind wanted, Uri uri) {
        if (running()) {
            return;
        }
        ContentResolver resolver = getApplication().getContentResolver();
        begin(wanted);
        host.background(() -> {
            File folder = new File(getApplication().getNoBackupFilesDir(), "chosen");
            try {
                Documents.delete(folder);
                folder.mkdirs();
                File file = copy(wanted, resolver, uri, folder);
                main.post(() -> {
                    checking = true;
                    tell();
                });
                host.answer(this::finish, wanted == Kind.EXAMPLES ? "import_examples" : "import_bundle", file.getPath());
            } catch (IOException | RuntimeException error) { // a provider throws what it likes
                String kind = error instanceof Documents.NoRoom ? "file.no-room"
                        : error instanceof ZipException ? "bundle.not-a-zip" : "file";
                String said = String.valueOf(error.getMessage());
                main.post(() -> finish(cancelled ? null : Host.problem(kind, said)));
            } finally {
                Documents.delete(folder);
            }
        });
    }

    /** Have the bundle downloaded from where the invitation says. */
    void download(Host host) {
        if (!running()) {
            downloader = host;
            begin(Kind.DOWNLOAD);
            host.command(answer -> finish(cancelled && answer.has("error") ? null : answer), "fetch_bundle");
            watch();
        }
    }

    private void begin(Kind wanted) {
        kind = wanted;
        name = "";
        copied = toldAt = 0;
        total = -1;
        cancelled = checking = false;
        tell();
    }

    private void watch() {
        if (!downloading()) {
            return;
        }
        downloader.status(status -> {
            JSONArray fetched = status.optJSONArray("fetched");
            if (downloading() && fetched != null) {
                name = fetched.optString(0);
                copied = fetched.optLong(1);
                total = fetched.optLong(2);
                tell();
            }
            main.postDelayed(this::watch, WATCH_MS);
        });
    }

    void cancel() {
        cancelled = true;
        if (downloading()) {
            downloader.beside("cancel_fetch");
        }
    }

    @Override
    protected void onCleared() {
        cancel();
    }

    private File copy(Kind wanted, ContentResolver resolver, Uri uri, File folder) throws IOException {
        File bundle = new File(folder, "bundle");
        if (wanted == Kind.FOLDER) {
            Documents.copyTree(resolver, uri, bundle, this::count);
            return bundle;
        }
        String found = Documents.name(resolver, uri);
        long size = size(resolver, uri);
        main.post(() -> {
            name = found;
            total = size;
        });
        if (wanted == Kind.ZIP) {
            Documents.unpack(resolver, uri, bundle, this::count);
            return bundle;
        }
        File file = new File(folder, found);
        Documents.copyFile(resolver, uri, file, this::count);
        return file;
    }

    private static long size(ContentResolver resolver, Uri uri) {
        try (Cursor cursor = resolver.query(uri, new String[] {OpenableColumns.SIZE}, null, null, null)) {
            return cursor != null && cursor.moveToFirst() && !cursor.isNull(0) ? cursor.getLong(0) : -1;
        }
    }

    private void count(int bytes) throws IOException {
        if (cancelled) {
            throw new IOException("cancelled");
        }
        main.post(() -> {
            copied += bytes;
            long now = SystemClock.uptimeMillis();
            if (now - toldAt >= TELL_MS) { // a file has more pieces than a screen has pictures
                toldAt = now;
                tell();
            }
        });
    }

    private void finish(JSONObject answer) {
        Kind over = kind;
        kind = null;
        Runnable told = () -> {
            listener.importing();
            listener.imported(over, answer);
        };
        if (listener == null) {
            untold = told;
        } else {
            told.run();
        }
    }

    private void tell() {
        if (listener != null) {
            listener.importing();
        }
    }
}
