"""Planted faults and decoys in real torch and transformers code: what the plugin says of each."""
