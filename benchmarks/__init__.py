"""Measurements; each script and the suite say how they are called."""
