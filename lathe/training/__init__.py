"""Batches become a trained decoder and a run's folder; one loop, for every kind of training."""
