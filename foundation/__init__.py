"""What every package of ArcFlow stands on: errors, digests, atomic writes, the command-line guard.

Standard library only; imports nothing of the other packages.
"""
