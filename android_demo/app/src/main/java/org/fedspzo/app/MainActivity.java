package org.fedspzo.app;

import android.Manifest;
import android.content.Intent;
import android.content.pm.PackageManager;
import android.net.Uri;
import android.os.Build;
import android.os.Bundle;
import android.view.MenuItem;
import android.view.View;

import androidx.activity.result.ActivityResultLauncher;
import androidx.activity.result.contract.ActivityResultContracts;
import androidx.annotation.Nullable;
import androidx.lifecycle.ViewModelProvider;

import com.google.android.material.appbar.MaterialToolbar;

import org.json.JSONObject;

/** The first page: set-up until it is complete, and then what happens, whether it helps, what it costs, and a try. */
public final class MainActivity extends Page implements Importer.Listener {
    /** How often any label is suggested, where the person agrees. */
    private static final double EXPLORE = 0.05;

    private final Chooser chooser = new Chooser(this, this::take,
            said -> complain(Host.problem("file", said)));
    /** Whatever the answer: without it the service is told of in the system's list of active apps alone. */
    private final ActivityResultLauncher<String> mayNotify = registerForActivityResult(
            new ActivityResultContracts.RequestPermission(), granted -> start());

    private Importer importer;
    private Trial trial;
    private SetupCard setup;
    private NowCard now;
    private ImprovementCard improvement;
    private CostCard costs;
    private TrialCard form;
    private ImportCard importing;
    private Screen screen;

    @Override
    protected void onCreate(@Nullable Bundle saved) {
        super.onCreate(saved);
        setContentView(R.layout.main);
        View page = findViewById(R.id.page);
        setup = new SetupCard(page);
        now = new NowCard(page);
        improvement = new ImprovementCard(page);
        costs = new CostCard(page);
        form = new TrialCard(page, saved);
        importing = new ImportCard(page);
        ViewModelProvider kept = new ViewModelProvider(this);
        importer = kept.get(Importer.class);
        trial = kept.get(Trial.class);
        onClick(R.id.start, this::goOn);
        onClick(R.id.pause, this::pause);
        onClick(R.id.detail, () -> showDetail(screen.problem));
        onClick(R.id.setup_detail, () -> showDetail(screen.problem));
        onClick(R.id.join, () -> Question.invitation(getSupportFragmentManager()));
        onClick(R.id.download, () -> importer.download(host()));
        onClick(R.id.import_file, chooser::zip);
        onClick(R.id.import_zip, chooser::zip);
        onClick(R.id.import_folder, chooser::folder);
        onClick(R.id.import_data, chooser::examples);
        onClick(R.id.import_cancel, importer::cancel);
        onClick(R.id.write, this::write);
        onClick(R.id.ask, this::ask);
        onClick(R.id.accept, () -> react(true, ""));
        onClick(R.id.reject, () -> react(false, ""));
        onClick(R.id.correct, () -> Question.right(getSupportFragmentManager(), form.labels()));
        onClick(R.id.add, this::addExample);
        MaterialToolbar toolbar = findViewById(R.id.toolbar);
        toolbar.setOnMenuItemClickListener(this::onMenu);
        toolbar.getMenu().setGroupVisible(0, false);
        if (saved == null) {
            onNewIntent(getIntent());
        }
    }

    /** An invitation that a camera app read. Any page can send one, so it is shown before it counts. */
    @Override
    protected void onNewIntent(Intent intent) {
        super.onNewIntent(intent);
        if (Intent.ACTION_VIEW.equals(intent.getAction()) && intent.getDataString() != null) {
            askToJoin(intent.getDataString());
        }
    }

    @Override
    protected void onStart() {
        super.onStart();
        importer.listen(this);
        trial.listen(this::showForm);
        importing();
    }

    @Override
    protected void onStop() {
        importer.listen(null);
        trial.listen(() -> {});
        super.onStop();
    }

    @Override
    protected void onSaveInstanceState(Bundle state) {
        super.onSaveInstanceState(state);
        form.save(state);
    }

    @Override
    void show(Screen found) {
        screen = found;
        setup.show(found);
        now.show(found);
        improvement.show(found);
        costs.show(found);
        showForm();
        MaterialToolbar toolbar = findViewById(R.id.toolbar);
        toolbar.getMenu().setGroupVisible(0, found.complete() && !importer.running());
        toolbar.getMenu().findItem(R.id.settings).setVisible(found.joined || found.problem != null);
    }

    private void showForm() {
        if (screen != null) {
            form.show(screen, trial);
        }
    }

    private boolean onMenu(MenuItem item) {
        int id = item.getItemId();
        if (id == R.id.settings) {
            startActivity(new Intent(this, SettingsActivity.class));
        } else if (id == R.id.more_examples) {
            chooser.examples();
        } else if (id == R.id.new_zip) {
            chooser.zip();
        } else if (id == R.id.new_folder) {
            chooser.folder();
        } else {
            Question.invitation(getSupportFragmentManager());
        }
        return true;
    }

    @Override
    public void answered(Question.Kind kind, String text, String about) {
        if (kind == Question.Kind.INVITATION) {
            askToJoin(text);
        } else if (kind == Question.Kind.JOIN) {
            host().command(this::done, "enrol", about);
        } else if (kind == Question.Kind.RIGHT) {
            react(false, text);
        }
    }

    private void askToJoin(String invitation) {
        host().command(answer -> {
            if (!isDestroyed() && !complain(answer)) {
                String device = answer.optString("device");
                Question.join(getSupportFragmentManager(), invitation, getString(R.string.join_confirm, answer.optString("job"),
                        device.isEmpty() ? getString(R.string.join_anonymous) : device, answer.optString("broker")));
            }
        }, "describe_invitation", invitation);
    }

    private void goOn() {
        if (screen.needsInvitation()) {
            Question.invitation(getSupportFragmentManager());
        } else {
            askToStart();
        }
    }

    private void askToStart() {
        boolean granted = Build.VERSION.SDK_INT < 33
                || checkSelfPermission(Manifest.permission.POST_NOTIFICATIONS) == PackageManager.PERMISSION_GRANTED;
        if (granted) {
            start();
        } else {
            mayNotify.launch(Manifest.permission.POST_NOTIFICATIONS);
        }
    }

    /** What is missing is said here, not in the service, which has no screen. */
    private void start() {
        host().command(answer -> {
            if (!isDestroyed() && !complain(answer)) {
                TrainingJob.schedule(this);
                TrainingService.start(this);
                refresh();
            }
        }, "check_ready");
    }

    private void pause() {
        TrainingJob.cancel(this);
        TrainingService.stop(this);
        host().command(this::done, "pause");
    }

    private void write() {
        form.open();
        showForm();
        View card = findViewById(R.id.trial);
        card.post(() -> card.getParent().requestChildFocus(card, card));
    }

    private void ask() {
        JSONObject record = form.record();
        if (record != null && !trial.asking) {
            trial.asked();
            Trial asked = trial; // which the answer goes to, though the screen may have been turned
            host().command(asked::answered, "predict", record.toString(), form.explores() ? EXPLORE : 0.0);
        }
    }

    /** What the person did with the suggestion; what is right, if they say so. */
    private void react(boolean accepted, String right) {
        trial.reactable(false); // a second tap would be a second reaction
        host().command(answer -> {
            if (complain(answer)) {
                trial.reactable(true);
            } else if (!isDestroyed()) {
                tell(getString(R.string.reacted));
            }
            refresh();
        }, "react", accepted, right);
    }

    private void addExample() {
        JSONObject example = form.example();
        if (example == null) {
            return;
        }
        host().command(answer -> {
            if (!isDestroyed() && !complain(answer)) {
                tell(getString(R.string.added));
                form.clear();
            }
            refresh();
        }, "add_example", example.toString());
    }

    private void take(Importer.Kind kind, Uri uri) {
        importer.start(host(), kind, uri);
    }

    @Override
    public void importing() {
        importing.show(importer);
        setup.offer(!importer.running());
    }

    @Override
    public void imported(Importer.Kind kind, @Nullable JSONObject answer) {
        if (answer == null) {
            tell(getString(R.string.import_cancelled));
        } else if (!complain(answer)) {
            int added = answer.optInt("added");
            tell(kind == Importer.Kind.EXAMPLES ? getResources().getQuantityString(R.plurals.imported, added, added)
                    : getString(R.string.imported_bundle));
        }
        refresh();
    }
}
