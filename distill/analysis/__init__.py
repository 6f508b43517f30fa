"""What can be said of a network's answers: pure functions on arrays, a metric a function."""
