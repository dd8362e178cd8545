"""Codes of pictures, encoded once: folders of shards, and who writes them."""
