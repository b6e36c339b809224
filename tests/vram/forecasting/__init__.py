"""Tests of forecasts of a project's own steps."""
