"""The machine: the accelerate device of this process, and the processes that work together."""
