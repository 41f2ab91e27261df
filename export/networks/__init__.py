"""The networks of a bundle, one kind a file: how each is built without weights, called, fed and checked."""
