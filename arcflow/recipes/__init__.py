"""Recipes by name, as TOML, and the tables that they are made of."""
