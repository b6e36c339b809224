"""Runs remembered in pytest-benchmark's store, compared with one another, and searched for where a change began.

Pure: `keys`, `entries`, `criteria`, `compare`, `steps`, `runs`. Files: `store`, `locked`. The format: docs/history.md.
"""
