"""Tuning a model that has learned: names of what is trained, low-rank adapters, their folders."""
