"""Runs that begin with a model that has learned: whole or in parts, in one stage or several."""
