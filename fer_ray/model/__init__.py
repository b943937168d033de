"""The networks: backbones and their weights, transforms, checkpoints, predictions, metrics."""
