"""Forecasts: how much memory code needs on a card that is not here, from traces that are played on a model of it."""
