"""Runs remembered in pytest-benchmark's store, compared with one another, and searched for where a change began.

Pure: `keys`, `entries`, `criteria`, `compare`, `steps`, `runs`. Files: `store`, `file_storage`. In pytest: `gate`,
`saver`. In the shell: `command`, `terminal`, `json_form`. The format: docs/history.md.
"""
