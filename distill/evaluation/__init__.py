"""Measure trained networks: predictions, metrics, analyses of features, statistics over seeds."""
