package android.app;

import android.content.Context;

public class Notification {
    public static class Builder {
        public Builder(Context context, String channelId) {}
    }
}
