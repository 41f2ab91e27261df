"""Where the parts of a model come from: hub, folders, configurations, tokenizers, what users type."""
