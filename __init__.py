"""Gatewatch: anomaly detection and response for the gateways in front of AI models.

This file stays free of imports: `gatewatch kill-switch` starts through it and must be fast.
"""

__version__ = "0.1.0"
