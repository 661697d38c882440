package org.fedspzo.app;

import android.content.Context;
import android.graphics.Canvas;
import android.graphics.DashPathEffect;
import android.graphics.Paint;
import android.graphics.Path;
import android.util.AttributeSet;
import android.util.TypedValue;
import android.view.View;

import com.google.android.material.color.MaterialColors;

/** One measure of how well the model does, over the rounds: measurements as dots, their course as a line, the start as dashes. */
public final class Chart extends View {
    private static final int HEIGHT_DP = 110, TICKS = 2;
    /** Steps of the axis at least, so that noise does not fill the picture. */
    private static final int LEAST_STEPS = 2;

    private final Paint line = new Paint(Paint.ANTI_ALIAS_FLAG), dot = new Paint(Paint.ANTI_ALIAS_FLAG),
            start = new Paint(), grid = new Paint(), words = new Paint(Paint.ANTI_ALIAS_FLAG);
    private final Path path = new Path();
    private final float unit = getResources().getDisplayMetrics().density;
    private Screen.Course shown;
    private double low, high;

    public Chart(Context context, AttributeSet attributes) {
        super(context, attributes);
        int accent = MaterialColors.getColor(this, androidx.appcompat.R.attr.colorPrimary);
        int quiet = MaterialColors.getColor(this, com.google.android.material.R.attr.colorOnSurfaceVariant);
        stroke(line, accent, 3);
        stroke(start, quiet, 1.5f);
        start.setPathEffect(new DashPathEffect(new float[] {4 * unit, 4 * unit}, 0));
        stroke(grid, MaterialColors.getColor(this, com.google.android.material.R.attr.colorOutlineVariant), 1);
        dot.setColor(MaterialColors.compositeARGBWithAlpha(accent, 90));
        words.setColor(quiet);
        words.setTextSize(TypedValue.applyDimension(TypedValue.COMPLEX_UNIT_SP, 12, getResources().getDisplayMetrics()));
    }

    private void stroke(Paint paint, int colour, float width) {
        paint.setStyle(Paint.Style.STROKE);
        paint.setStrokeJoin(Paint.Join.ROUND);
        paint.setStrokeCap(Paint.Cap.ROUND);
        paint.setStrokeWidth(width * unit);
        paint.setColor(colour);
    }

    /** Show measurements; at least two. */
    void show(Screen.Course course) {
        shown = course;
        low = Double.POSITIVE_INFINITY;
        high = Double.NEGATIVE_INFINITY;
        for (double value : course.values) {
            low = Math.min(low, value);
            high = Math.max(high, value);
        }
        double step = course.counts ? 0.1 : Math.pow(10, Math.floor(Math.log10(Math.max(Math.max(high - low, high / 10), 1e-2))));
        low = Math.max(0, Math.floor(low / step) * step);
        high = Math.max(Math.ceil(high / step) * step, low + LEAST_STEPS * step);
        setContentDescription(getContext().getString(R.string.chart, name(), label(course.first()), whole(course.rounds[0]),
                label(course.last()), whole(course.rounds[course.rounds.length - 1])));
        invalidate();
    }

    /** What the upright axis shows. */
    private String name() {
        return getContext().getString(shown.counts ? R.string.axis_right : R.string.axis_loss);
    }

    @Override
    protected void onMeasure(int width, int height) {
        super.onMeasure(width, MeasureSpec.makeMeasureSpec(
                (int) (HEIGHT_DP * unit + 3.6f * words.getTextSize()), MeasureSpec.EXACTLY));
    }

    @Override
    protected void onDraw(Canvas canvas) {
        if (shown == null) {
            return;
        }
        float text = words.getTextSize(), left = tickWidth() + 8 * unit, right = getWidth() - 6 * unit;
        float top = 2 * text, bottom = getHeight() - 1.6f * text;
        words.setTextAlign(Paint.Align.LEFT);
        words.setTextScaleX(Math.min(1, getWidth() / words.measureText(name()))); // narrow screens, large letters
        canvas.drawText(name(), 0, text, words);
        words.setTextScaleX(1);
        words.setTextAlign(Paint.Align.RIGHT);
        for (int i = 0; i <= TICKS; i++) {
            double value = low + (high - low) * i / TICKS;
            float y = y(value, top, bottom);
            canvas.drawLine(left, y, right, y, grid);
            canvas.drawText(label(value), left - 6 * unit, y + text / 3, words);
        }
        double first = shown.rounds[0], last = shown.rounds[shown.rounds.length - 1];
        canvas.drawText(whole(last), right, bottom + 1.3f * text, words);
        words.setTextAlign(Paint.Align.LEFT);
        canvas.drawText(whole(first), left, bottom + 1.3f * text, words);
        words.setTextAlign(Paint.Align.CENTER);
        canvas.drawText(getContext().getString(R.string.axis_round), (left + right) / 2, bottom + 1.3f * text, words);

        float from = y(shown.values[0], top, bottom);
        path.rewind();
        path.moveTo(left, from);
        path.lineTo(right, from);
        canvas.drawPath(path, start);
        path.rewind();
        for (int i = 0; i < shown.values.length; i++) {
            float x = left + (float) ((shown.rounds[i] - first) / Math.max(1, last - first)) * (right - left);
            canvas.drawCircle(x, y(shown.values[i], top, bottom), 2.5f * unit, dot);
            if (i == 0) {
                path.moveTo(x, y(shown.smooth[i], top, bottom));
            } else {
                path.lineTo(x, y(shown.smooth[i], top, bottom));
            }
        }
        canvas.drawPath(path, line);
    }

    private float y(double value, float top, float bottom) {
        return bottom - (float) ((value - low) / (high - low)) * (bottom - top);
    }

    private float tickWidth() {
        return Math.max(words.measureText(label(low)), words.measureText(label(high)));
    }

    private String label(double value) {
        return shown.counts ? getContext().getString(R.string.percent, Math.round(100 * value)) : Text.decimal(value, 2);
    }

    private static String whole(double round) {
        return String.valueOf((int) round);
    }
}
