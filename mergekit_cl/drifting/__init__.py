"""Is the level of a stream of losses still what it was? Calibrated detectors and their state."""
