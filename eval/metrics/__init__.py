"""Features, captions and verdicts -> numbers. Of networks only what feature_network.py promises is used."""
