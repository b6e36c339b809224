"""Recorded, reviewed limits in plain text, and what a session accepts."""
