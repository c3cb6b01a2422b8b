"""Detectors of unwanted network traffic."""
