"""Latents <-> codes."""
