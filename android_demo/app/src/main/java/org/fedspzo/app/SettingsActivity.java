package org.fedspzo.app;

import android.content.ActivityNotFoundException;
import android.content.Intent;
import android.net.Uri;
import android.os.Bundle;
import android.provider.Settings;
import android.widget.CompoundButton;

import androidx.annotation.Nullable;

import com.google.android.material.appbar.MaterialToolbar;

import org.json.JSONException;
import org.json.JSONObject;

/** When the phone learns, and what ties it to a group. */
public final class SettingsActivity extends Page {
    @Override
    protected void onCreate(@Nullable Bundle saved) {
        super.onCreate(saved);
        setContentView(R.layout.settings);
        ((MaterialToolbar) findViewById(R.id.toolbar)).setNavigationOnClickListener(view -> finish());
        onClick(R.id.only_charging, this::setLimits);
        onClick(R.id.only_unmetered, this::setLimits);
        onClick(R.id.background, this::showSavers);
        onClick(R.id.key, this::shareKey);
        onClick(R.id.leave, () -> Question.leave(getSupportFragmentManager()));
    }

    @Override
    void show(Screen screen) {
        box(R.id.only_charging).setChecked(screen.onlyCharging);
        box(R.id.only_unmetered).setChecked(screen.onlyUnmetered);
        Views.text(findViewById(R.id.page), R.id.battery_limit, getString(R.string.battery_limit,
                Math.round(100 * screen.leastBattery), Text.decimal(screen.highestTemperature, 0)));
        Views.text(findViewById(R.id.page), R.id.member, !screen.joined ? getString(R.string.not_member)
                : getString(R.string.member, screen.job,
                screen.device.isEmpty() ? getString(R.string.join_anonymous) : screen.device, screen.broker));
        Views.show(findViewById(R.id.key), screen.joined);
        Views.show(findViewById(R.id.key_text), screen.joined);
        Views.show(findViewById(R.id.leave), screen.joined || screen.problem != null);
    }

    @Override
    public void answered(Question.Kind kind, String text, String about) {
        if (kind == Question.Kind.LEAVE) {
            TrainingJob.cancel(this);
            TrainingService.stop(this);
            host().command(this::done, "leave");
        }
    }

    private void setLimits() {
        try {
            host().command(this::done, "set_limits", new JSONObject()
                    .put("charging", box(R.id.only_charging).isChecked())
                    .put("unmetered", box(R.id.only_unmetered).isChecked())
                    .toString());
        } catch (JSONException impossible) {
            throw new IllegalStateException(impossible);
        }
    }

    /** The system's list of apps that it saves battery on; a few phones have none. */
    private void showSavers() {
        try {
            startActivity(new Intent(Settings.ACTION_IGNORE_BATTERY_OPTIMIZATION_SETTINGS));
        } catch (ActivityNotFoundException none) {
            startActivity(new Intent(Settings.ACTION_APPLICATION_DETAILS_SETTINGS, Uri.fromParts("package", getPackageName(), null)));
        }
    }

    /** The public key, for the list of a server that takes known devices alone. */
    private void shareKey() {
        host().command(answer -> {
            if (!isDestroyed() && !complain(answer)) {
                Intent send = new Intent(Intent.ACTION_SEND).setType("text/plain");
                startActivity(Intent.createChooser(send.putExtra(Intent.EXTRA_TEXT, answer.optString("line")), null));
            }
        }, "show_key");
    }

    private CompoundButton box(int id) {
        return findViewById(id);
    }
}
