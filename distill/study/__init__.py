"""Studies: from a recipe to trained runs, results and a report."""
