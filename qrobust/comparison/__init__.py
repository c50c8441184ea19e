"""Finished runs and evaluations: held to bounds, and compared with each other. Needs no torch."""
