"""The helper `gatewatch-exec`: runs the commands that the rails name, as a user of its own, and nothing else."""
