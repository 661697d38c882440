/* A direct buffer over memory that belongs to somebody else; see Buffers.java. */
#include <jni.h>
#include <stdint.h>

JNIEXPORT jobject JNICALL Java_org_fedspzo_app_Buffers_over(JNIEnv *env, jclass self, jlong address, jlong bytes) {
    (void)self;
    return (*env)->NewDirectByteBuffer(env, (void *)(intptr_t)address, bytes);
}
