"""Search learning rate and momentum on a prepared set. The same name goes on with a search that was interrupted."""

from fer_ray.cli.main import run

if __name__ == "__main__":
    run("tune")
