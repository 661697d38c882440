package org.fedspzo.app;

import android.os.Bundle;
import android.os.Handler;
import android.os.Looper;
import android.view.View;

import androidx.annotation.Nullable;
import androidx.appcompat.app.AppCompatActivity;

import com.google.android.material.snackbar.Snackbar;

import org.json.JSONObject;

/** What both pages do: ask Python how things stand while they are seen, and say what went well or wrong. */
abstract class Page extends AppCompatActivity implements Question.Asker {
    private static final long REFRESH_MS = 1000;

    private final Handler clock = new Handler(Looper.getMainLooper());
    private final Runnable tick = this::refresh;
    private Host host;
    /** Says why there is no status, where there is none; once, and until there is one. */
    private Snackbar broken;

    /** Show how things stand. */
    abstract void show(Screen screen);

    @Override
    protected void onCreate(@Nullable Bundle saved) {
        super.onCreate(saved);
        host = Host.of(this);
    }

    @Override
    protected void onResume() {
        super.onResume();
        refresh();
    }

    @Override
    protected void onPause() {
        clock.removeCallbacks(tick);
        super.onPause();
    }

    final Host host() {
        return host;
    }

    final void refresh() {
        clock.removeCallbacks(tick);
        clock.postDelayed(tick, REFRESH_MS);
        host.status(status -> {
            Problem problem = Problem.of(status);
            if (isDestroyed()) {
                return;
            }
            if (problem != null) {
                broken = broken == null ? say(problem, Snackbar.LENGTH_INDEFINITE) : broken;
                return;
            }
            if (broken != null) {
                broken.dismiss();
                broken = null;
            }
            show(Screen.of(status));
        });
    }

    /** After a command: say what went wrong, and show what has changed. */
    final void done(JSONObject answer) {
        if (!isDestroyed()) {
            complain(answer);
            refresh();
        }
    }

    /** Say in the owner's words what went wrong, with the detail behind a tap; tell whether something did. */
    final boolean complain(JSONObject answer) {
        Problem problem = Problem.of(answer);
        if (problem != null && !isDestroyed()) {
            say(problem, Snackbar.LENGTH_LONG);
        }
        return problem != null;
    }

    private Snackbar say(Problem problem, int length) {
        Snackbar said = Snackbar.make(findViewById(R.id.page), problem.words(), length)
                .setAction(R.string.detail, view -> showDetail(problem));
        said.show();
        return said;
    }

    final void showDetail(Problem problem) {
        Question.detail(getSupportFragmentManager(), problem.kind.isEmpty() ? problem.detail
                : problem.detail + "\n\n" + problem.kind);
    }

    final void tell(CharSequence text) {
        Snackbar.make(findViewById(R.id.page), text, Snackbar.LENGTH_LONG).show();
    }

    final void onClick(int id, Runnable action) {
        findViewById(id).setOnClickListener((View view) -> action.run());
    }
}
