"""Models in the forms of other programs, and on the hub."""
