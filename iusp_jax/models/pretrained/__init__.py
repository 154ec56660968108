"""Models that others trained, read from the files that they published."""
