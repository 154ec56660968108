"""Scores as text, tables and plots."""
