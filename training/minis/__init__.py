"""Small checkpoints in the published layouts, for tests and for a first run without any download."""
