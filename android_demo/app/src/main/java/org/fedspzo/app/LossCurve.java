package org.fedspzo.app;

import android.content.Context;
import android.graphics.Canvas;
import android.graphics.Paint;
import android.graphics.Path;
import android.util.AttributeSet;
import android.util.TypedValue;
import android.view.View;

import org.json.JSONArray;

/** The loss by round, as a line with its highest and lowest values. */
public final class LossCurve extends View {
    private final Paint line = new Paint(Paint.ANTI_ALIAS_FLAG), words = new Paint(Paint.ANTI_ALIAS_FLAG);
    private final Path path = new Path();
    private final float unit = getResources().getDisplayMetrics().density;
    private JSONArray losses = new JSONArray();

    public LossCurve(Context context, AttributeSet attributes) {
        super(context, attributes);
        line.setStyle(Paint.Style.STROKE);
        line.setStrokeJoin(Paint.Join.ROUND);
        line.setStrokeWidth(2 * unit);
        line.setColor(themed(android.R.attr.colorAccent));
        words.setColor(themed(android.R.attr.textColorSecondary));
        words.setTextSize(TypedValue.applyDimension(
                TypedValue.COMPLEX_UNIT_SP, 12, getResources().getDisplayMetrics()));
    }

    /** Show [[round, loss], …]. */
    void show(JSONArray losses) {
        this.losses = losses;
        invalidate();
    }

    @Override
    protected void onDraw(Canvas canvas) {
        if (losses.length() < 2) {
            return;
        }
        double low = Double.POSITIVE_INFINITY, high = Double.NEGATIVE_INFINITY;
        for (int i = 0; i < losses.length(); i++) {
            low = Math.min(low, loss(i));
            high = Math.max(high, loss(i));
        }
        double first = round(0), last = round(losses.length() - 1);
        float top = words.getTextSize() + 4 * unit, bottom = getHeight() - words.getTextSize() - 6 * unit;
        float left = 2 * unit, right = getWidth() - 2 * unit;
        path.rewind();
        for (int i = 0; i < losses.length(); i++) {
            float x = left + (float) ((round(i) - first) / Math.max(1, last - first)) * (right - left);
            float y = top + (float) ((high - loss(i)) / Math.max(1e-9, high - low)) * (bottom - top);
            if (i == 0) {
                path.moveTo(x, y);
            } else {
                path.lineTo(x, y);
            }
        }
        canvas.drawPath(path, line);
        words.setTextAlign(Paint.Align.LEFT);
        canvas.drawText(Text.decimal(high, 3), left, words.getTextSize(), words);
        canvas.drawText(Text.decimal(low, 3), left, getHeight() - 2 * unit, words);
        words.setTextAlign(Paint.Align.RIGHT);
        canvas.drawText((int) first + " – " + (int) last, right, getHeight() - 2 * unit, words);
    }

    private double round(int index) {
        return losses.optJSONArray(index).optDouble(0);
    }

    private double loss(int index) {
        return losses.optJSONArray(index).optDouble(1);
    }

    private int themed(int attribute) {
        TypedValue value = new TypedValue();
        getContext().getTheme().resolveAttribute(attribute, value, true);
        return value.resourceId != 0 ? getContext().getColor(value.resourceId) : value.data;
    }
}
