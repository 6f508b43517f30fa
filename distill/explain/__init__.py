"""What trained networks look like inside: numbers of each, and pictures of several, by running them once more."""
