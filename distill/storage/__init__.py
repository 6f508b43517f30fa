"""What is on disk: runs, checkpoints, and the files they consist of."""
