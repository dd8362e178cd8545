"""Text encoders whose states a generator reads in place of a text."""
