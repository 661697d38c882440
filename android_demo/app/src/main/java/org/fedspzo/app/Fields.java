package org.fedspzo.app;

import android.content.res.Resources;

/** What a task's fields are called in the words of the phone's owner. */
final class Fields {
    private Fields() {}

    /** Of a name that the tasks of the exporter have; another name stays as it is. */
    static String label(Resources resources, String name) {
        int label = known(name);
        return label == 0 ? name : resources.getString(label);
    }

    private static int known(String name) {
        switch (name) {
            case "text":
            case "passage":
            case "context":
                return R.string.field_text;
            case "sentence":
                return R.string.field_sentence;
            case "sentence1":
                return R.string.field_sentence1;
            case "sentence2":
                return R.string.field_sentence2;
            case "word":
                return R.string.field_word;
            case "premise":
                return R.string.field_premise;
            case "hypothesis":
                return R.string.field_hypothesis;
            case "title":
                return R.string.field_title;
            case "question":
                return R.string.field_question;
            case "prompt":
                return R.string.field_prompt;
            default:
                return 0;
        }
    }
}
