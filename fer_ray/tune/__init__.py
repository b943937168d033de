"""The search over learning rate and momentum (Ray Tune)."""
