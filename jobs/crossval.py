"""Several runs for one score: folds, seeds, or the paper's split beside an honest one."""

from fer_ray.cli.main import run

if __name__ == "__main__":
    run("crossval")
