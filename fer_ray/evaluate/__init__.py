"""Checkpoint to scores: inference, explanation, protocols of several runs, label audit."""
