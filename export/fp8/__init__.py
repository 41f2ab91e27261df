"""FP8: its numbers, what it takes, the calibration file, and its simulation in torch."""
