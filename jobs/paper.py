"""The paper's study on your data, in its order, and what its scores are worth on people never seen."""

from fer_ray.cli.main import run

if __name__ == "__main__":
    run("paper")
