"""The server side: rounds, aggregation, the journal's keeper, and an embedded MQTT broker."""
