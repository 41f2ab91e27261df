"""Where teachers come from: the hub, a pipeline's folder, its backbone and its text encoders."""
