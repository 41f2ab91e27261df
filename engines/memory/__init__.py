"""What a bundle takes of a GPU's memory, from its manifest alone."""
