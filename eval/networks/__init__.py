"""What turns pictures and captions into features."""
