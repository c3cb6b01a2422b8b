"""The privileged process and what it does to the kernel; it trusts nobody and imports no heavy library."""
