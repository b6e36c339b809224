"""The same samples in laps: what is run, when it is read, and what is kept for a rerun."""
