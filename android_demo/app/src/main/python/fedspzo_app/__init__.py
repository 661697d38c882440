"""The app's logic: what screen and service ask for, over ``device_runtime`` as it is. Java draws and schedules."""
