package org.fedspzo.app;

/** What Python tells of the training's news; public, as all that it sees. */
public final class News {
    private final Host host;

    News(Host host) {
        this.host = host;
    }

    /** There is something new to show; called from any thread. */
    public void changed() {
        host.tell();
    }
}
