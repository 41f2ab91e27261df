"""The parts of gpu/run.py, one a module; each has ``run(printer, options)``."""
