"""Prepared set to trained checkpoint: batches, loop, workers (Ray Train)."""
