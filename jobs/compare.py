"""Train several backbones alike, on the same split, and compare them."""

from fer_ray.cli.main import run

if __name__ == "__main__":
    run("compare")
