"""Train on each data set of data.sources and test on every other."""

from fer_ray.cli.main import run

if __name__ == "__main__":
    run("crossdata")
