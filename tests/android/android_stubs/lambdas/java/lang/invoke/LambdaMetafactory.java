package java.lang.invoke;

public class LambdaMetafactory {
    public static CallSite metafactory(
            MethodHandles.Lookup caller, String name, MethodType invoked, MethodType erased, MethodHandle body,
            MethodType instantiated) {
        return null;
    }

    public static CallSite altMetafactory(
            MethodHandles.Lookup caller, String name, MethodType invoked, Object... arguments) {
        return null;
    }
}
