"""Measure classifiers on the same pixels: predictions, intervals, tests, attacks."""
