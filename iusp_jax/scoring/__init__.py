"""The DCASE metric, other scores, and statistics over runs."""
