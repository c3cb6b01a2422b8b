"""Detectors of what clients do at the model servers, by the gateway's access log."""
