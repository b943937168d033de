"""Audit a prepared set: who and what stands in more than one split, and which labels are doubtful (--labels)."""

from fer_ray.cli.main import run

if __name__ == "__main__":
    run("audit")
