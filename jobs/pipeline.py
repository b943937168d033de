"""Prepare, train and evaluate: from a raw data set to a report."""

from fer_ray.cli.main import run

if __name__ == "__main__":
    run("pipeline")
