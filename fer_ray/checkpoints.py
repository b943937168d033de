"""What a trained model is on disk: save, verify, load, find the best.

A folder with `model.safetensors` (weights), `train_state.pt` (optimiser, epoch; loaded with `weights_only=True`) and
`model.json` (all that is needed to use the weights, and their sha256), written last: with it the folder is complete.
"""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from fer_ray import augment, backbones, storage
from fer_ray.manifest import EXPRESSIONS


class CheckpointError(RuntimeError):
    """No usable checkpoint; the message names the folder and what is wrong with it."""


def save(folder: str, backbone: str, model: torch.nn.Module, train_state: dict, description: dict) -> None:
    """Write a checkpoint to a local folder. `description`: metrics, history, configuration, fingerprints."""
    path = Path(folder)
    weights = save_safetensors({k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()})
    (path / "model.safetensors").write_bytes(weights)
    torch.save(train_state, path / "train_state.pt")
    content = {"backbone": backbone, "classes": list(EXPRESSIONS), "input_size": augment.CROP,
               "mean": augment.MEAN.tolist(), "std": augment.STD.tolist(),
               "sha256": hashlib.sha256(weights).hexdigest(), **description}
    (path / "model.json").write_text(json.dumps(content, indent=2))


def describe(uri: str) -> dict:
    """`model.json` of a checkpoint. Raises: CheckpointError if the folder is not a complete one."""
    try:
        return storage.read_json(storage.join(uri, "model.json"))
    except (OSError, json.JSONDecodeError):
        raise CheckpointError(f"{uri}: not a checkpoint (no readable model.json)") from None


def load_model(uri: str) -> tuple[torch.nn.Module, dict]:
    """The network in evaluation mode and its description. Raises: CheckpointError if the weights do not verify."""
    description = describe(uri)
    weights = storage.read_bytes(storage.join(uri, "model.safetensors"))
    if hashlib.sha256(weights).hexdigest() != description["sha256"]:
        raise CheckpointError(f"{uri}/model.safetensors: sha256 differs from model.json; the file is damaged")
    model = backbones.build(description["backbone"])
    model.load_state_dict(load_safetensors(weights))
    return model.eval(), description


def load_train_state(uri: str) -> dict:
    """Optimiser and progress, without unpickling code."""
    content = io.BytesIO(storage.read_bytes(storage.join(uri, "train_state.pt")))
    return torch.load(content, map_location="cpu", weights_only=True)


def find_best(run: str) -> str:
    """URI of the run's complete checkpoint with the best validation balanced accuracy.

    Raises: CheckpointError if there is none.
    """
    best = None
    for name in storage.list_dirs(run):
        if not name.startswith("checkpoint_"):
            continue
        uri = storage.join(run, name)
        try:
            score = describe(uri)["metrics"]["val_balanced_accuracy"]
        except CheckpointError:
            continue  # half written when the run died
        if best is None or score > best[0]:
            best = (score, uri)
    if best is None:
        raise CheckpointError(f"{run}: no complete checkpoint; run jobs/train.py with the same name first")
    return best[1]


def history(run: str) -> list[dict]:
    """Metrics of every epoch that the newest complete checkpoint of the run knows of."""
    found: list[dict] = []
    for name in storage.list_dirs(run):
        if name.startswith("checkpoint_"):
            try:
                found = max(found, describe(storage.join(run, name))["history"], key=len)
            except CheckpointError:
                continue
    return found
