"""The connection to an MQTT broker, and what gives access to one."""
