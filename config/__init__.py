"""The schema of the configuration and the commented default files."""

FOLDER = "/etc/gatewatch"
"""Where the configuration and the rails lie unless a command names other files."""
