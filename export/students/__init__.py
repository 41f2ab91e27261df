"""The student that a command works on, and how it runs: conditions, and the few evaluations with the closed form."""
