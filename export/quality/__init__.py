"""What FP8 costs, measured: calibration, layer errors, the gate."""
