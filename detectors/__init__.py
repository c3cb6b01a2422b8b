"""Detectors: a batch and a state in, findings out. No input or output, no clock, no logging."""
