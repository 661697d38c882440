package org.fedspzo.app;

import android.view.View;
import android.widget.TextView;

/** Small things that all cards do. */
final class Views {
    private Views() {}

    static void show(View view, boolean visible) {
        view.setVisibility(visible ? View.VISIBLE : View.GONE);
    }

    /** Set a text where it is another, since TalkBack speaks what is set; an empty one takes no room. */
    static void text(View parent, int id, CharSequence text) {
        TextView view = parent.findViewById(id);
        if (!text.toString().contentEquals(view.getText())) {
            view.setText(text);
        }
        show(view, text.length() > 0);
    }
}
