package org.fedspzo.app;

import android.content.Context;
import android.os.Handler;
import android.os.Looper;
import android.util.Log;

import com.chaquo.python.PyObject;
import com.chaquo.python.Python;
import com.chaquo.python.android.AndroidPlatform;

import org.json.JSONException;
import org.json.JSONObject;

import java.util.HashSet;
import java.util.Set;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;

/**
 * Python and the one App object of the process (fedspzo_app/app.py). Commands are carried out one after another on a
 * thread of their own; answers, and news of the training, come on the main thread.
 */
class Host {
    /** Takes the answer to a command; an "error" in it is a sentence for people. */
    interface Answer {
        void take(JSONObject answer);
    }

    /** What keeps the training going: the service or the job. */
    interface Holder {
        /** There is something new to show. */
        void changed(JSONObject status);
    }

    private static Host only;

    private final Context context;
    private final Handler main = new Handler(Looper.getMainLooper());
    private final ExecutorService commands = Executors.newSingleThreadExecutor();
    private final ExecutorService statuses = Executors.newSingleThreadExecutor();
    private final Set<Holder> holders = new HashSet<>();
    private PyObject app;

    Host(Context context) {
        this.context = context;
    }

    /** The process's own. */
    static synchronized Host of(Context context) {
        if (only == null) {
            only = new Host(context.getApplicationContext());
        }
        return only;
    }

    /** Have a command of the App carried out. */
    void command(Answer answer, String name, Object... arguments) {
        commands.execute(() -> answer(answer, name, arguments));
    }

    /** Do something that takes long before a command, on the commands' thread. */
    void background(Runnable work) {
        commands.execute(work);
    }

    /** As {@link #command}, on the thread that calls. */
    void answer(Answer answer, String name, Object... arguments) {
        JSONObject found = call(name, arguments);
        main.post(() -> answer.take(found));
    }

    /** Ask how things stand; no command that takes long is waited for. */
    void status(Answer answer) {
        statuses.execute(() -> answer(answer, "status"));
    }

    /** Have something done that waits for no command, beside the one that runs. */
    void beside(String name) {
        statuses.execute(() -> call(name));
    }

    /** Start training, or keep it going; errors come as the status's message or as an "error". On the main thread. */
    void hold(Holder holder, Answer started) {
        holders.add(holder);
        command(started, "start", new News(this));
    }

    /** Let go of the training, which rests when nobody holds it; the holder hears no more. On the main thread. */
    void release(Holder holder) {
        if (holders.remove(holder) && holders.isEmpty()) {
            command(answer -> {}, "rest");
        }
    }

    /** Tell the holders that there is something new; from any thread. */
    void tell() {
        status(status -> {
            if (status.optBoolean("finished")) {
                TrainingJob.cancel(context);
            }
            for (Holder holder : new HashSet<>(holders)) {
                holder.changed(status);
            }
        });
    }

    JSONObject call(String name, Object... arguments) {
        try {
            return new JSONObject(app().callAttr(name, arguments).toString());
        } catch (JSONException | RuntimeException | LinkageError error) { // Python's and missing libraries' among them
            Log.e("fedspzo", name + " failed", error);
            return problem("program", error.toString());
        }
    }

    static JSONObject problem(String kind, String sentence) {
        try {
            return new JSONObject().put("error", sentence).put("kind", kind);
        } catch (JSONException impossible) {
            throw new IllegalStateException(impossible);
        }
    }

    private synchronized PyObject app() {
        if (app == null) {
            load("LiteRt"); // in the LiteRT archive
            load("directions"); // built with the app
            if (!Python.isStarted()) {
                Python.start(new AndroidPlatform(context));
            }
            app = Python.getInstance()
                    .getModule("fedspzo_app.main")
                    .callAttr("create", context.getNoBackupFilesDir().getPath(), context, new Vault());
        }
        return app;
    }

    /** Python's loader then finds it by name; where it is missing, Python does without it or says what cannot be done. */
    private static void load(String library) {
        try {
            System.loadLibrary(library);
        } catch (UnsatisfiedLinkError missing) {
            Log.w("fedspzo", "there is no lib" + library + ".so", missing);
        }
    }
}
