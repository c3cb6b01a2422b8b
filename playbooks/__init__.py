"""The response engine and the shipped playbooks."""
