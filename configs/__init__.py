"""Configs: `base` has every field, each of the others overrides a few."""
