"""Find and crop the faces of a data set, split it and audit the split."""

from fer_ray.cli.main import run

if __name__ == "__main__":
    run("prepare")
