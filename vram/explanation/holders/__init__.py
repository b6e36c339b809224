"""Who keeps a tensor alive."""
