"""Store runs, checkpoints and results on disk."""
