package org.fedspzo.app;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertTrue;

import android.app.Activity;
import android.app.Dialog;
import android.graphics.Color;
import android.graphics.Rect;
import android.text.Layout;
import android.view.View;
import android.view.ViewGroup;
import android.widget.CompoundButton;
import android.widget.EditText;
import android.widget.ImageView;
import android.widget.ListView;
import android.widget.TextView;

import androidx.core.graphics.ColorUtils;

import com.google.android.material.button.MaterialButton;
import com.google.android.material.card.MaterialCardView;
import com.google.android.material.color.MaterialColors;
import com.google.android.material.textfield.TextInputLayout;

import org.junit.Test;
import org.junit.runner.RunWith;
import org.robolectric.annotation.GraphicsMode;

import java.util.ArrayList;
import java.util.List;
import java.util.Map;

/** Rules for all that is seen, in every state: names, 48 dp, contrast, order, and texts that are not cut off. */
@RunWith(PhoneRunner.class)
@GraphicsMode(GraphicsMode.Mode.NATIVE)
public final class AccessibilityTest {
    /** Android's least size of what is tapped; WCAG 2.2's least contrast of texts, and of large ones. */
    private static final int TOUCH_DP = 48;
    private static final double CONTRAST = 4.5, LARGE_CONTRAST = 3, LARGE_SP = 18;

    /** Colours of what is behind all else. */
    private static final int PAGE = com.google.android.material.R.attr.colorSurface,
            DIALOG = com.google.android.material.R.attr.colorSurfaceContainerHigh,
            SNACKBAR = com.google.android.material.R.attr.colorSurfaceInverse;

    private final List<String> wrong = new ArrayList<>();

    private void look(String qualifiers, String more, float fontScale) {
        Display display = new Display(qualifiers, more, fontScale);
        MainActivity page = display.open(States.newcomer());
        for (Map.Entry<String, String> state : States.all().entrySet()) {
            display.host.status(state.getValue());
            page.refresh();
            Display.settle();
            check(state.getKey(), page);
        }
        display.host.answer("predict", States.ANSWER);
        ((TextView) page.findViewById(R.id.fields).findViewWithTag("text")).setText("play a song");
        display.host.status(States.better());
        page.refresh();
        Display.tap(page, R.id.ask);
        check("answered", page);
        Display.tap(page, R.id.correct);
        check("correct", Display.dialog());
        display.host.answer("react", "{\"error\": \"no room\", \"kind\": \"data.unwritable\"}");
        Display.tap(page, R.id.accept);
        check("snackbar", (View) page.findViewById(com.google.android.material.R.id.snackbar_text).getParent(), SNACKBAR);
        Display.tap(page, com.google.android.material.R.id.snackbar_action);
        check("detail", Display.dialog());
        Question.invitation(page.getSupportFragmentManager());
        check("invitation", Display.dialog());
        Question.join(page.getSupportFragmentManager(), "", page.getString(R.string.join_confirm, "default", "phone-1",
                "mqtts://fed.example.org:8883"));
        check("join", Display.dialog());
        SettingsActivity settings = display.open(SettingsActivity.class, States.better()).get();
        check("settings", settings);
        Display.tap(settings, R.id.leave);
        check("leave", Display.dialog());
        assertEquals(String.join("\n", wrong), 0, wrong.size());
    }

    private void check(String state, Activity page) {
        check(state, page.findViewById(R.id.page), PAGE);
    }

    private void check(String state, Dialog dialog) {
        check(state, dialog.getWindow().getDecorView(), DIALOG);
    }

    private void check(String state, View root, int colour) {
        List<View> seen = new ArrayList<>();
        collect(root, seen);
        assertTrue(state, seen.size() > 1);
        Rect before = new Rect();
        for (View view : seen) {
            String where = state + ", " + name(view) + ": ";
            tapped(where, view);
            named(where, view);
            if (view instanceof TextView && ((TextView) view).getText().length() > 0) {
                readable(where, (TextView) view, colour);
                whole(where, (TextView) view);
            }
            int[] corner = new int[2];
            view.getLocationInWindow(corner);
            Rect at = new Rect(corner[0], corner[1], corner[0] + view.getWidth(), corner[1] + view.getHeight());
            boolean sameColumn = at.left < before.right && before.left < at.right;
            if (sameColumn && at.bottom <= before.top) {
                wrong.add(where + "TalkBack comes to it after what is below it");
            }
            before = at;
        }
    }

    /** What TalkBack stops at, in its order. */
    private static void collect(View view, List<View> found) {
        if (view.getVisibility() != View.VISIBLE
                || view.getImportantForAccessibility() == View.IMPORTANT_FOR_ACCESSIBILITY_NO_HIDE_DESCENDANTS) {
            return;
        }
        boolean stops = view instanceof TextView || view instanceof ImageView || view instanceof Chart
                || view.isClickable() && !(view instanceof ListView); // its rows are read, and not the list
        if (stops && view.getImportantForAccessibility() != View.IMPORTANT_FOR_ACCESSIBILITY_NO && view.getWidth() > 0) {
            found.add(view);
        }
        if (view instanceof ViewGroup) {
            for (int i = 0; i < ((ViewGroup) view).getChildCount(); i++) {
                collect(((ViewGroup) view).getChildAt(i), found);
            }
        }
    }

    private void tapped(String where, View view) {
        float density = view.getResources().getDisplayMetrics().density;
        if (view.isClickable() && Math.min(view.getWidth(), view.getHeight()) < TOUCH_DP * density - 0.5) {
            wrong.add(where + view.getWidth() / density + " × " + view.getHeight() / density + " dp");
        }
        if (view.isClickable() && !view.isEnabled()) {
            wrong.add(where + "a dead button");
        }
    }

    private void named(String where, View view) {
        CharSequence text = view instanceof TextView ? ((TextView) view).getText() : "";
        CharSequence description = view.getContentDescription();
        boolean hinted = view instanceof EditText && box(view) != null && box(view).getHint() != null;
        if (text.length() == 0 && (description == null || description.length() == 0) && !hinted) {
            wrong.add(where + "it has no name");
        }
    }

    private static TextInputLayout box(View view) {
        for (android.view.ViewParent parent = view.getParent(); parent != null; parent = parent.getParent()) {
            if (parent instanceof TextInputLayout) {
                return (TextInputLayout) parent;
            }
        }
        return null;
    }

    private void readable(String where, TextView view, int colour) {
        int ground = ground(view, colour);
        int ink = ColorUtils.compositeColors(view.getCurrentTextColor(), ground);
        double contrast = ColorUtils.calculateContrast(ink, ground);
        float sp = view.getTextSize() / view.getResources().getDisplayMetrics().density
                / view.getResources().getConfiguration().fontScale;
        if (contrast < (sp >= LARGE_SP ? LARGE_CONTRAST : CONTRAST)) {
            wrong.add(String.format("%scontrast %.1f of #%08x on #%08x", where, contrast, ink, ground));
        }
    }

    /** The colour behind a text; that of the window where nothing else is there. */
    private static int ground(View view, int colour) {
        if (view instanceof MaterialButton && ((MaterialButton) view).getBackgroundTintList() != null) {
            int tint = ((MaterialButton) view).getBackgroundTintList().getColorForState(view.getDrawableState(), 0);
            if (Color.alpha(tint) == 255) {
                return tint;
            }
        }
        for (android.view.ViewParent parent = view.getParent(); parent instanceof View; parent = parent.getParent()) {
            if (parent instanceof MaterialCardView) {
                return ((MaterialCardView) parent).getCardBackgroundColor().getDefaultColor();
            }
        }
        return MaterialColors.getColor(view, colour);
    }

    private void whole(String where, TextView view) {
        Layout layout = view.getLayout();
        if (layout == null || view instanceof EditText) {
            return;
        }
        boolean cut = !(view instanceof CompoundButton)
                && layout.getHeight() > view.getHeight() - view.getCompoundPaddingTop() - view.getCompoundPaddingBottom() + 1;
        for (int line = 0; line < layout.getLineCount(); line++) {
            cut |= layout.getEllipsisCount(line) > 0 || layout.getLineMax(line) > layout.getWidth() + 1;
        }
        if (cut) {
            wrong.add(where + "cut off: " + view.getText());
        }
    }

    private static String name(View view) {
        return view.getId() == View.NO_ID || view.getId() < 1 << 24 ? view.getClass().getSimpleName()
                : view.getResources().getResourceEntryName(view.getId());
    }

    @Test
    public void whatIsWrongIsFound() {
        MainActivity page = Display.plain().open(States.ready());
        check("", page);
        assertEquals(wrong.toString(), 0, wrong.size());
        MaterialButton start = page.findViewById(R.id.start);
        start.getLayoutParams().width = start.getLayoutParams().height = 60;
        start.requestLayout();
        ((TextView) page.findViewById(R.id.message)).setTextColor(0xffb0c8c4);
        page.findViewById(R.id.ask).setEnabled(false);
        ((TextView) page.findViewById(R.id.add)).setText("");
        Display.settle();
        check("", page);
        String found = String.join("\n", wrong);
        for (String part : new String[] {"start: 40.0 × 40.0 dp", "start: cut off", "message: contrast 1.", "ask: a dead button",
            "add: it has no name"}) {
            assertTrue(found, found.contains(part));
        }
    }

    @Test
    public void light() {
        look(Display.TALL, "", 1);
    }

    @Test
    public void dark() {
        look(Display.TALL, "night", 1);
    }

    @Test
    public void letterOfTwiceTheSize() {
        look(Display.LARGE_TALL, "", 2);
    }

    @Test
    public void germanLettersOfTwiceTheSize() {
        look(Display.LARGE_TALL, "de", 2);
    }

    @Test
    public void tablet() {
        look(Display.TABLET, "", 1);
    }

    @Test
    public void smallPhone() {
        look("w320dp-h1800dp-port-hdpi", "de", 1.3f);
    }
}
