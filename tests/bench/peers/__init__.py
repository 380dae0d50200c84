"""Other servers on the same model files: how each is started, and what it runs in its own environment."""
