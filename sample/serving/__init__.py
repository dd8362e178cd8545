"""A server: one process holds a model, and others ask it for pictures and texts over HTTP."""
