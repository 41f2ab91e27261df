"""Graph passes that decide what numbers are kept and computed in."""
