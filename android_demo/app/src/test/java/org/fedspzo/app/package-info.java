/** Tests of the app on Android's own framework, as Robolectric runs it on a JVM. All draw with Android's own graphics. */
@GraphicsMode(GraphicsMode.Mode.NATIVE)
package org.fedspzo.app;

import org.robolectric.annotation.GraphicsMode;
