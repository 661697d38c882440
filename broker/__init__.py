"""The server side: rounds, aggregation, the journal's keeper, and an embedded MQTT broker."""

if __name__ != "fedspzo.broker":
    raise ImportError("this package is imported as fedspzo.broker, so that no module is loaded under two names")
