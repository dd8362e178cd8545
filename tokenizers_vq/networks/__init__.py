"""Encoders and decoders, and frozen networks that look at pictures."""
