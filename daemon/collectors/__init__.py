"""Collectors: they turn files, journals and packets into batches of events."""
