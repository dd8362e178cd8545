"""Using a model: decoders, pipelines from captions to pictures and back, and what is written for the user."""
