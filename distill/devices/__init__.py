"""Devices and processes: the accelerator of this process, and the group that it belongs to."""
