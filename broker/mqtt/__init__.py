"""MQTT brokers: an embedded one, a managed mosquitto, and the rights of users at each kind."""
