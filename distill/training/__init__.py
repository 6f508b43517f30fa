"""Training: the loop, the state of one run while it trains, its optimizer, and its teachers."""
