"""The families of backbones, one a file: how each is built, called, adapted, fed by its pipeline."""
