"""A decoder becomes another with the same interface: on several devices, in slices, with adapters; knows no file."""
