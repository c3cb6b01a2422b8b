"""What the enforcer does to the kernel and reads from it. Nothing here decides anything."""
