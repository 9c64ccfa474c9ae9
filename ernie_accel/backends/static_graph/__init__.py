"""Backends that run the static graph of ``ernie_accel.export``: one Runner, an executor for each foreign engine."""
