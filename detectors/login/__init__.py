"""Detectors of fraudulent logins."""
