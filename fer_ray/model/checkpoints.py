"""What a trained model is on disk: save, verify, load, find the best.

A folder with `model.safetensors` (weights), `train_state.pt` (optimiser, epoch; loaded with `weights_only=True`) and
`model.json` (all that is needed to use the weights, and their sha256), written last: with it the folder is complete.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from fer_ray import storage
from fer_ray.config import TrainConfig
from fer_ray.data.manifest import EXPRESSIONS
from fer_ray.errors import UserError
from fer_ray.model import augment

if TYPE_CHECKING:
    import torch

FILES = ("model.safetensors", "train_state.pt", "model.json")


class CheckpointError(UserError):
    """No usable checkpoint; the message names the folder and what is wrong with it."""


def save(folder: str, backbone: str, model: torch.nn.Module, train_state: dict, description: dict) -> None:
    """Write a checkpoint to a local folder.

    `description`: `progress` (epoch, step), `at_end_of_epoch`, metrics, history, configuration, fingerprints.
    """
    import torch
    from safetensors.torch import save_file

    path = Path(folder)
    weights = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    with ThreadPoolExecutor(2) as pool:  # both are large
        weights_sha256 = pool.submit(_write, path / "model.safetensors", lambda file: save_file(weights, file))
        state_sha256 = pool.submit(_write, path / "train_state.pt", lambda file: torch.save(train_state, file))
    content = {"backbone": backbone, "classes": list(EXPRESSIONS), "input_size": augment.CROP,
               "mean": augment.MEAN.tolist(), "std": augment.STD.tolist(), "sha256": weights_sha256.result(),
               "train_state_sha256": state_sha256.result(), **description}
    (path / "model.json").write_text(json.dumps(content, indent=2))


def move(folder: str, uri: str) -> None:
    """Give a local checkpoint to storage, `model.json` last: no reader takes half a checkpoint for one."""
    for name in FILES:
        storage.move(str(Path(folder) / name), storage.join(uri, name))


def folder_name(progress: dict) -> str:
    """Name of the folder within a run, from `epoch` and `step`."""
    return f"checkpoint_{progress['epoch']:04d}_{progress['step']:06d}"


def prune(run: str, num_to_keep: int) -> None:
    """Remove all checkpoints of the run but the latest and, for the rest of the number, the best; at least one."""
    found = sorted(_complete(run), key=_progress)
    best = sorted((f for f in found[:-1] if f[1]["at_end_of_epoch"]), key=_score, reverse=True)
    for one in found[:-1]:
        if one not in best[: max(1, num_to_keep - 1)]:
            storage.delete_dir(one[0])


def describe(uri: str) -> dict:
    """`model.json` of a checkpoint. Raises: CheckpointError if the folder is not a complete one."""
    try:
        return storage.read_json(storage.join(uri, "model.json"))
    except (OSError, json.JSONDecodeError):
        raise CheckpointError(f"{uri}: not a checkpoint (no readable model.json)") from None


def load_weights(uri: str) -> dict[str, torch.Tensor]:
    """The state dict. Raises: CheckpointError if it does not verify."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(_verified(uri, "model.safetensors", "sha256"))
    except SafetensorError as error:
        raise CheckpointError(f"{uri}/model.safetensors: not in this format ({error})") from None


def load_model(uri: str) -> tuple[torch.nn.Module, dict]:
    """The network in evaluation mode and its description. Raises: CheckpointError if the weights do not verify."""
    from fer_ray.model import backbones

    description = describe(uri)
    return backbones.load(description["backbone"], load_weights(uri)).eval(), description


def start_state(t: TrainConfig) -> dict[str, torch.Tensor]:
    """State dict that training starts from: ImageNet's, random, a file's, or that of one of our own checkpoints.

    Raises: backbones.WeightsError; CheckpointError.
    """
    from fer_ray.model import backbones

    if not storage.exists(storage.join(t.weights, "model.json")):
        return backbones.initial_state(t.backbone, t.weights, t.seed)
    other = describe(t.weights)["backbone"]
    if other != t.backbone:
        raise backbones.WeightsError(f"train.weights {t.weights}: is a checkpoint of {other}, not of {t.backbone}")
    return load_weights(t.weights)


def load_train_state(uri: str) -> dict:
    """Optimiser and progress, without unpickling code. Raises: CheckpointError if the file is damaged."""
    import torch

    content = _verified(uri, "train_state.pt", "train_state_sha256")
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError):  # torch's own message tells how to run what is in there
        raise CheckpointError(f"{uri}/train_state.pt: not in this format, or holds more than tensors") from None


def find_best(run: str) -> str:
    """URI of the run's checkpoint with the best validation balanced accuracy, among those whose weights verify.

    Raises: CheckpointError if there is none.
    """
    for uri, _ in sorted((f for f in _complete(run) if f[1]["at_end_of_epoch"]), key=_score, reverse=True):
        if _verifies(uri, "model.safetensors", "sha256"):
            return uri
    raise CheckpointError(f"{run}: no complete checkpoint; run jobs/train.py with the same name first")


def find_latest(run: str) -> str | None:
    """URI of the run's most advanced checkpoint that is whole; None if there is none.

    Every file is verified: a checkpoint that was damaged, or half written when the run died, is passed over.
    """
    for uri, _ in sorted(_complete(run), key=_progress, reverse=True):
        if _verifies(uri, "model.safetensors", "sha256") and _verifies(uri, "train_state.pt", "train_state_sha256"):
            return uri
    return None


def _write(file: Path, write: Callable[[Path], None]) -> str:
    """Write a file; its sha256. Hashed from the file, for in memory its content would be copied several times."""
    write(file)
    return storage.sha256(str(file))


def _score(found: tuple[str, dict]) -> float:
    return found[1]["metrics"]["val_balanced_accuracy"]


def _progress(found: tuple[str, dict]) -> tuple[int, int]:
    return found[1]["progress"]["epoch"], found[1]["progress"]["step"]


def _complete(run: str) -> list[tuple[str, dict]]:
    found = []
    for name in storage.list_dirs(run):
        if name.startswith("checkpoint_"):
            uri = storage.join(run, name)
            try:
                found.append((uri, describe(uri)))
            except CheckpointError:
                continue  # half written when the run died
    return found


def _verified(uri: str, name: str, key: str) -> bytes:
    """The content of a file whose sha256 `model.json` knows under this key. Raises: CheckpointError."""
    try:
        content = storage.read_bytes(storage.join(uri, name))
    except OSError as error:
        raise CheckpointError(f"{uri}/{name}: cannot be read ({error})") from None
    if hashlib.sha256(content).hexdigest() != describe(uri)[key]:
        raise CheckpointError(f"{uri}/{name}: sha256 differs from model.json; the file is damaged")
    return content


def _verifies(uri: str, name: str, key: str) -> bool:
    try:
        return storage.sha256(storage.join(uri, name)) == describe(uri)[key]
    except storage.StorageError:  # a server that is away says nothing of the file
        raise
    except OSError:
        return False
