"""The schema of the configuration and the commented default files."""
