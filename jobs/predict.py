"""Say the expression in photographs and videos without labels."""

from fer_ray.cli.main import run

if __name__ == "__main__":
    run("predict")
