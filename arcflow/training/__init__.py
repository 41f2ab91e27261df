"""Training: the loop of every stage, and the distillation of a student."""
