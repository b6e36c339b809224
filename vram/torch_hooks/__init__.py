"""Hooks into torch's dispatch that meters, tracer and simulation share."""
