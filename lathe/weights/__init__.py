"""Bytes: containers on disk become tensors not yet read, and tensors become containers; knows no model."""
