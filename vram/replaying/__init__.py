"""Replaying the same samples in laps: running them, reading the meters, and keeping enough for a rerun."""
