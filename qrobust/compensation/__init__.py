"""Remedies in front of or instead of a frozen INT8 classifier: the calibrator, and what it must be better than."""
