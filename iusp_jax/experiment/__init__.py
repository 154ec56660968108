"""Runs, tables of runs, and tuning."""
