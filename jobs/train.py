"""Fine-tune a backbone on a prepared set. The same name resumes."""

from fer_ray.cli.main import run

if __name__ == "__main__":
    run("train")
