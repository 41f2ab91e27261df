"""Synthetic models at true size, and the measurement of what is done with them (see ``benchmarks/fullsize.py``)."""
