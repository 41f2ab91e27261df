"""The study behind ``python -m arcflow.study``: variants at one budget, measured alike; claims."""
