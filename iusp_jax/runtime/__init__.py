"""Devices, processes, checkpoints, files and logs; knows no audio."""
