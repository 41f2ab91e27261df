"""The FLUX student in torch: what engines are compared with."""
