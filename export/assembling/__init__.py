"""From a student to a verified bundle: graphs, stages, parity, manifest."""
