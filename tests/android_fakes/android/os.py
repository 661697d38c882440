"""Constants of the phone."""


class BatteryManager:
    EXTRA_LEVEL = "level"
    EXTRA_SCALE = "scale"
    EXTRA_PLUGGED = "plugged"
    EXTRA_TEMPERATURE = "temperature"


class Build:
    class VERSION:
        SDK_INT = 33
