"""Figures, each a function from numbers to a matplotlib figure; readable without colour."""
