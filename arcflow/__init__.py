"""The ArcFlow method: momentum field, closed-form solver, students, adapters, distillation, evaluation."""
