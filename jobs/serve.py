"""Answer requests over HTTP, with a web page that takes pictures and the webcam."""

from fer_ray.cli.main import run

if __name__ == "__main__":
    run("serve")
