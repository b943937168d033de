"""A checkpoint of a tiny network with random weights, for tests of what uses one."""

from __future__ import annotations

from pathlib import Path

import torch

from fer_ray.config import Config, to_dict
from fer_ray.data_config import FacesConfig
from fer_ray.model import backbones, checkpoints, predictor
from fer_ray.use import networks

TINY = "tiny"


def write(folder: Path, faces: FacesConfig | None = None, temperature: float | None = None) -> str:
    """Write it; its folder. `temperature`: stored as an evaluation does it; None: never evaluated."""
    torch.manual_seed(0)
    model = backbones.build(TINY).eval()
    with torch.no_grad():  # so that probabilities differ between faces
        backbones.head(model, TINY).weight.mul_(20)
    description = {"metrics": {"val_balanced_accuracy": 0.5}, "at_end_of_epoch": True,
                   "config": to_dict(Config(name="tiny", faces=faces or FacesConfig())),
                   "progress": {"epoch": 1, "step": 0}}
    checkpoints.save(str(folder), TINY, model, {"optimizer": {}, "progress": {}}, description)
    if temperature:
        checkpoints.write_calibration(str(folder), temperature, None)
    return str(folder)


def described(checkpoint: str) -> networks.Description:
    """As jobs know it; "c" is none that exists."""
    return networks.Description("c", FacesConfig(), None, "0") if checkpoint == "c" else networks.describe(checkpoint)


def export(checkpoint: str, file: Path) -> str:
    """Write it as an ONNX file, as jobs/export.py does; its path."""
    from fer_ray.use import onnx_export

    model, description = checkpoints.load_model(checkpoint)
    temperature = checkpoints.read_temperature(checkpoint)
    network = onnx_export.CropClassifier(model, temperature or 1.0, predictor.flips(description))
    onnx_export.write_onnx(onnx_export.trace(network, TINY), str(file),
                           onnx_export.metadata_of(description, temperature))
    return str(file)
