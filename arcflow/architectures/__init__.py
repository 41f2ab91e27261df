"""The families of backbones, one a file: how each is built, called, adapted, fed; and the head they share."""
