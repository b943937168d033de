"""Write a trained network as ONNX and for PyTorch, and score each beside the original."""

from fer_ray.cli.main import run

if __name__ == "__main__":
    run("export")
