"""Prompts that students are distilled on: lists and data sets, read when needed, and what encoders say of them."""
