"""What training takes of GPUs: memory by part and operations, found from shapes alone."""
