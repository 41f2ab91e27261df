"""What a session has on the device: networks, one arena for all buffers, cached encodings of prompts."""
