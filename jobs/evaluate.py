"""Score the best checkpoint on the test split and write the report."""

from fer_ray.cli.main import run

if __name__ == "__main__":
    run("evaluate")
