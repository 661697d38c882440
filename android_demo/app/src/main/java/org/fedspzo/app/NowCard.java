package org.fedspzo.app;

import android.content.res.ColorStateList;
import android.content.res.Resources;
import android.view.View;
import android.widget.ImageView;
import android.widget.TextView;

import com.google.android.material.button.MaterialButton;
import com.google.android.material.card.MaterialCardView;
import com.google.android.material.color.MaterialColors;

/** What happens now, in one sentence, and the one thing that can be done about it. */
final class NowCard {
    private final MaterialCardView card;
    private final TextView state, message;
    private final MaterialButton start, detail;

    NowCard(View page) {
        card = page.findViewById(R.id.now);
        state = card.findViewById(R.id.state);
        message = card.findViewById(R.id.message);
        start = card.findViewById(R.id.start);
        detail = card.findViewById(R.id.detail);
    }

    void show(Screen screen) {
        Screen.Now now = screen.now;
        Views.show(card, screen.complete());
        Views.text(card, R.id.state, title(screen, card.getResources()));
        Views.text(card, R.id.message, text(screen));
        ((ImageView) card.findViewById(R.id.now_icon)).setImageResource(icon(now));
        boolean begun = now == Screen.Now.PAUSED || now == Screen.Now.RESTING || now == Screen.Now.STOPPED;
        start.setText(screen.needsInvitation() ? R.string.new_invitation : begun ? R.string.start_again : R.string.start);
        start.setIconResource(screen.needsInvitation() ? 0 : R.drawable.ready);
        Views.show(start, !now.running() && now != Screen.Now.FINISHED);
        Views.show(card.findViewById(R.id.pause), now.running());
        Views.show(detail, screen.problem != null && now.troubled());
        colour(now);
    }

    /** What happens, in a few words. */
    static String title(Screen screen, Resources resources) {
        switch (screen.now) {
            case READY:
                return resources.getString(R.string.now_ready);
            case RESTING:
                return resources.getString(R.string.now_resting);
            case CONNECTING:
                return resources.getString(R.string.now_connecting);
            case OFFLINE:
                return resources.getString(R.string.now_offline);
            case UNHEARD:
                return resources.getString(R.string.now_unheard);
            case NETWORK:
                return resources.getString(R.string.now_network);
            case CHARGER:
                return resources.getString(R.string.now_charger);
            case BATTERY:
                return resources.getString(R.string.now_battery);
            case HEAT:
                return resources.getString(R.string.now_heat);
            case FIRST:
                return resources.getString(R.string.now_first);
            case LEARNING:
                return screen.rounds == 0 ? resources.getString(R.string.now_learning, screen.round + 1)
                        : resources.getString(R.string.now_learning_of, Math.min(screen.round + 1, screen.rounds), screen.rounds);
            case PAUSED:
                return resources.getString(R.string.now_paused);
            case FINISHED:
                return resources.getString(R.string.now_finished);
            case DECLINED:
                return resources.getString(R.string.now_declined);
            default:
                return resources.getString(R.string.now_stopped);
        }
    }

    private String text(Screen screen) {
        Resources resources = card.getResources();
        switch (screen.now) {
            case READY:
                return resources.getString(R.string.now_ready_text);
            case RESTING:
                return resources.getString(R.string.now_resting_text);
            case CONNECTING:
                return resources.getString(R.string.now_connecting_text);
            case OFFLINE:
                return resources.getString(R.string.now_offline_text);
            case UNHEARD:
                return resources.getString(R.string.now_unheard_text);
            case NETWORK:
            case CHARGER:
            case BATTERY:
            case HEAT:
                return resources.getString(R.string.now_waiting_text);
            case FIRST:
                return resources.getString(R.string.now_first_text);
            case LEARNING:
                return resources.getQuantityString(R.plurals.learning_count, screen.helped, screen.helped);
            case PAUSED:
                return resources.getString(R.string.now_paused_text);
            case FINISHED:
                return resources.getString(R.string.now_finished_text, screen.round);
            default:
                return screen.problem == null ? "" : resources.getString(screen.problem.words());
        }
    }

    private static int icon(Screen.Now now) {
        return now == Screen.Now.READY || now == Screen.Now.RESTING ? R.drawable.ready
                : now == Screen.Now.LEARNING ? R.drawable.learning
                : now == Screen.Now.PAUSED ? R.drawable.paused
                : now == Screen.Now.FINISHED ? R.drawable.check
                : now.waiting() ? R.drawable.waiting : R.drawable.problem;
    }

    private void colour(Screen.Now now) {
        boolean wrong = now == Screen.Now.STOPPED || now == Screen.Now.DECLINED;
        boolean lively = now == Screen.Now.LEARNING || now == Screen.Now.FINISHED;
        int ground = wrong ? com.google.android.material.R.attr.colorErrorContainer
                : lively ? com.google.android.material.R.attr.colorPrimaryContainer
                : com.google.android.material.R.attr.colorSecondaryContainer;
        int ink = wrong ? com.google.android.material.R.attr.colorOnErrorContainer
                : lively ? com.google.android.material.R.attr.colorOnPrimaryContainer
                : com.google.android.material.R.attr.colorOnSecondaryContainer;
        int colour = MaterialColors.getColor(card, ink);
        card.setCardBackgroundColor(MaterialColors.getColor(card, ground));
        state.setTextColor(colour);
        message.setTextColor(colour);
        detail.setTextColor(colour);
        ((ImageView) card.findViewById(R.id.now_icon)).setImageTintList(ColorStateList.valueOf(colour));
    }
}
