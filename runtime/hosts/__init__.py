"""What makes images of a checked request: this package and the C++ core. The host of plans is :mod:`runtime.cuda`."""
