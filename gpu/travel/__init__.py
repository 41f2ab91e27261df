"""What a machine with a GPU needs, made on one without: few bytes, nothing to fetch."""
