"""The work of a request in the order of the stream: prompts, then batch by batch the images."""
