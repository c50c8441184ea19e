"""qrobust: INT8 image classifiers whose robustness is measured, and repaired."""

__version__ = "0.1.0"
