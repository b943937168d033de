"""A trained network on disk: save, move to storage, verify, load, find the best.

A checkpoint is a folder with `model.safetensors` (weights), `train_state.pt` (optimiser and progress; loaded with
`weights_only=True`) and `model.json` (all that is needed to use the weights, and the sha256 of both files), which is
written last: a folder without it was being written when its process died.

Evaluation adds `calibration.json`: the temperature that was fitted on validation, by which the network's logits are
divided where people use it.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from fer_ray import storage
from fer_ray.data.manifest import EXPRESSIONS
from fer_ray.errors import UserError
from fer_ray.model import augment
from fer_ray.values import BACKBONES, is_backbone

if TYPE_CHECKING:
    import torch

FILES = ("model.safetensors", "train_state.pt", "model.json")
# What every `model.json` holds, and what it must say for the code to use the weights as they were trained.
KEYS: dict[str, type] = {"backbone": str, "sha256": str, "train_state_sha256": str, "progress": dict,
                         "at_end_of_epoch": bool, "metrics": dict, "config": dict}
CONFIG_KEYS: dict[str, type] = {"name": str, "data": dict, "faces": dict, "train": dict}  # of those that readers use
INPUT = {"classes": list(EXPRESSIONS), "input_size": augment.CROP, "mean": augment.MEAN.tolist(),
         "std": augment.STD.tolist()}
REMEDY = "jobs/train.py with the same options goes on from the last checkpoint that is whole"
CALIBRATION = "calibration.json"


class CheckpointError(UserError):
    """No usable checkpoint; the message names the file, what is wrong with it and what makes it again."""


def save(folder: str, backbone: str, model: torch.nn.Module, train_state: dict, description: dict) -> None:
    """Write a checkpoint to a local folder, which is removed if that fails.

    `train_state`: `optimizer` (its state dict) and `progress` (of the run). `description`: `progress` (epoch, step),
    `at_end_of_epoch`, `metrics`, `config`, and whatever else `model.json` is to tell.

    Raises: storage.StorageError if the disk is full or read-only.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    weights = {name: values.detach().cpu().contiguous() for name, values in model.state_dict().items()}
    try:
        with ThreadPoolExecutor(2) as pool:  # both are large
            weights_sha256 = pool.submit(_write, path / "model.safetensors", lambda file: save_file(weights, file))
            state_sha256 = pool.submit(_write, path / "train_state.pt", lambda file: torch.save(train_state, file))
        content = {"backbone": backbone, **INPUT, "sha256": weights_sha256.result(),
                   "train_state_sha256": state_sha256.result(), **description}
        (path / "model.json").write_text(json.dumps(content, indent=2))
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)  # hundreds of MB, and the disk may be full
        if isinstance(error, (OSError, RuntimeError, SafetensorError)):  # what the three writers raise
            reason = " ".join(str(error).split())
            raise storage.StorageError(f"{folder}: the checkpoint cannot be written ({reason})") from error
        raise


def move(folder: str, uri: str) -> None:
    """Move a local checkpoint to storage, `model.json` last: no reader takes half a checkpoint for one.

    The local folder is gone afterwards, also if that fails: hundreds of MB for each try would fill the disk.
    """
    try:
        for name in FILES:
            storage.move(str(Path(folder) / name), storage.join(uri, name))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def folder_name(progress: dict) -> str:
    """Name of a checkpoint's folder within its run, from `epoch` and `step`."""
    return f"checkpoint_{progress['epoch']:04d}_{progress['step']:06d}"


def prune(run: str, num_to_keep: int) -> None:
    """Remove all checkpoints of the run but the latest and, for the rest of the number, the best; at least one."""
    found = sorted(_complete(run), key=_progress)
    best = sorted((f for f in found[:-1] if f[1]["at_end_of_epoch"]), key=_rank)
    for checkpoint in found[:-1]:
        if checkpoint not in best[: max(1, num_to_keep - 1)]:
            storage.delete_dir(checkpoint[0])


def remove_leftovers(run: str, newest: str | None) -> None:
    """Remove the checkpoints that a killed worker half wrote, and those that are damaged.

    `prune` would take a damaged one that is further than `newest` for the latest, and remove what is worth keeping.

    `newest`: of `find_latest`, when no worker of the run writes.
    """
    complete = {uri: _progress((uri, description)) for uri, description in _complete(run)}
    for name in storage.list_dirs(run):
        uri = storage.join(run, name)
        if name.startswith("checkpoint_") and (
                uri not in complete or newest is None or complete[uri] > complete[newest]):
            storage.delete_dir(uri)


def describe(uri: str) -> dict:
    """`model.json` of a checkpoint.

    Raises: CheckpointError if the folder is not a complete checkpoint, or one for other classes, images or backbones
        than the code knows; storage.StorageError if storage does not answer.
    """
    description = _read_description(uri)
    _refuse_other_input(uri, description)
    return description


def load_weights(uri: str) -> dict[str, torch.Tensor]:
    """The state dict. Raises: CheckpointError if it does not verify or is not finite; storage.StorageError."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    file = storage.join(uri, "model.safetensors")
    try:
        state = load(_read_verified(uri, "model.safetensors", "sha256"))
    except SafetensorError as error:
        raise CheckpointError(f"{file}: not in the format of safetensors ({error}); {REMEDY}") from None
    if wrong := not_finite(state):
        raise CheckpointError(f"{file}: {wrong}; {REMEDY}")
    return state


def not_finite(state: Mapping[str, torch.Tensor]) -> str:
    """In words, which tensors hold NaN or infinity; empty if none does."""
    names = [name for name, values in state.items() if values.is_floating_point() and not values.isfinite().all()]
    return f"{len(names)} of {len(state)} tensors hold NaN or infinity, the first is {names[0]!r}" if names else ""


def load_model(uri: str) -> tuple[torch.nn.Module, dict]:
    """The network in evaluation mode, and its description.

    Raises: CheckpointError if the checkpoint is not whole or not what it says it is; storage.StorageError.
    """
    from fer_ray.model import backbones

    description = describe(uri)
    try:
        return backbones.load(description["backbone"], load_weights(uri)).eval(), description
    except backbones.MisfitError as error:
        raise CheckpointError(f"{storage.join(uri, 'model.safetensors')}: {error}, though model.json says it is "
                              f"{description['backbone']}; was it edited?") from None


def load_train_state(uri: str) -> dict:
    """`optimizer` (its state dict) and `progress` (of the run), without unpickling code.

    Raises: CheckpointError if the file is damaged; storage.StorageError.
    """
    import torch

    file, content = storage.join(uri, "train_state.pt"), _read_verified(uri, "train_state.pt", "train_state_sha256")
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError):  # torch's own message tells how to run what is in there
        raise CheckpointError(f"{file}: not a file of torch.save, or holds more than tensors; {REMEDY}") from None
    if not (isinstance(state, dict) and {"optimizer", "progress"} <= state.keys()):
        raise CheckpointError(f"{file}: does not hold optimizer and progress; {REMEDY}")
    return state


def write_calibration(uri: str, temperature: float, reason: str | None) -> None:
    """Store the temperature that calibrates the network's probabilities beside its weights, unless it is there.

    Args:
        uri: the checkpoint.
        temperature: divides the logits; 1.0 if validation could not carry a fit.
        reason: why it could not; None if it could.

    Raises: CheckpointError; storage.StorageError, such as of a folder that is read-only.
    """
    content = {"temperature": temperature, "reason": reason, "sha256": describe(uri)["sha256"]}
    file = storage.join(uri, CALIBRATION)
    try:
        if storage.read_own_json(file, {}, "") == content:
            return
    except storage.DamagedError:  # or not there
        pass
    storage.write_json(file, content)


def read_temperature(uri: str) -> float | None:
    """The temperature that calibrates a checkpoint; None if evaluation has not fitted one, or could not keep it.

    Raises: CheckpointError; storage.DamagedError; storage.StorageError.
    """
    file = storage.join(uri, CALIBRATION)
    if not storage.exists(file):
        return None
    content = storage.read_own_json(file, {"temperature": float, "sha256": str},
                                    "remove the file, or run jobs/evaluate.py of that run again, which writes it")
    # a training that went on after damage may have written other weights into the folder
    is_of_these_weights = content["sha256"] == describe(uri)["sha256"]
    return content["temperature"] if is_of_these_weights and not content.get("reason") else None


def find_best(run: str) -> str:
    """URI of the run's checkpoint with the best validation balanced accuracy, among those whose weights verify.

    Raises: CheckpointError if there is none; storage.StorageError.
    """
    ends = [found for found in _complete(run) if found[1]["at_end_of_epoch"]]
    for uri, description in sorted(ends, key=_rank):
        if _verifies(uri, "model.safetensors", description["sha256"]):
            return uri
    damaged = f", and {len(ends)} that are damaged" if ends else ""
    raise CheckpointError(f"{run}: no complete checkpoint{damaged}; run jobs/train.py with the same name first")


def find_latest(run: str) -> str | None:
    """URI of the run's most advanced checkpoint that is whole; None if there is none.

    Every file is verified: a checkpoint that was damaged, or half written when the run died, is passed over.

    Raises: storage.StorageError: a run must not begin anew because its storage does not answer. CheckpointError if a
        checkpoint is for other classes, images or backbones than the code knows.
    """
    for uri, description in sorted(_complete(run), key=_progress, reverse=True):
        if (_verifies(uri, "model.safetensors", description["sha256"])
                and _verifies(uri, "train_state.pt", description["train_state_sha256"])):
            return uri
    return None


def _write(file: Path, write: Callable[[Path], None]) -> str:
    """Write a file; its sha256. Hashed from the file, since in memory its content would be copied several times."""
    write(file)
    return storage.sha256(str(file))


def _rank(found: tuple[str, dict]) -> tuple[float, tuple[int, int]]:
    """Sorts the best checkpoint first; of equal ones the earliest, as patience counts from."""
    return -found[1]["metrics"]["val_balanced_accuracy"], _progress(found)


def _progress(found: tuple[str, dict]) -> tuple[int, int]:
    return found[1]["progress"]["epoch"], found[1]["progress"]["step"]


def _complete(run: str) -> list[tuple[str, dict]]:
    """URI and description of each checkpoint of the run that has a readable description."""
    found = []
    for name in storage.list_dirs(run):
        if name.startswith("checkpoint_"):
            uri = storage.join(run, name)
            try:
                description = _read_description(uri)
            except CheckpointError:
                continue  # half written when the run died
            # Not passed over: that would take the second best for the best, or train anew what is there.
            _refuse_other_input(uri, description)
            found.append((uri, description))
    return found


def _read_description(uri: str) -> dict:
    file = storage.join(uri, "model.json")
    try:
        description = storage.read_own_json(file, KEYS, REMEDY)
    except storage.DamagedError as error:
        raise CheckpointError(f"{uri}: not a checkpoint ({error})") from None
    numbers = [description["progress"].get("epoch"), description["progress"].get("step")]
    if description["at_end_of_epoch"]:
        numbers.append(description["metrics"].get("val_balanced_accuracy"))
    if not all(isinstance(number, int | float) for number in numbers):
        raise CheckpointError(f"{uri}: not a checkpoint ({file}: progress or metrics lack a number); {REMEDY}")
    if not all(isinstance(description["config"].get(key), kind) for key, kind in CONFIG_KEYS.items()):
        raise CheckpointError(f"{uri}: not a checkpoint ({file}: config is not whole); {REMEDY}")
    return description


def _refuse_other_input(uri: str, description: dict) -> None:
    """Weights mean something only together with the classes, images and network that they were trained for.

    Raises: CheckpointError.
    """
    file = storage.join(uri, "model.json")
    for key, right in INPUT.items():
        if description.get(key) != right:
            raise CheckpointError(f"{file}: {key} is {description.get(key)!r}, but this version of fer_ray trains and "
                                  f"predicts with {right!r}; was the file edited? Put that back, or train again under "
                                  "another --name")
    backbone = description["backbone"]
    if not is_backbone(backbone):
        raise CheckpointError(f"{file}: unknown backbone {backbone!r}; known: {', '.join(BACKBONES)}, timm:NAME")


def _read_verified(uri: str, name: str, key: str) -> bytes:
    """The content of a file, whose sha256 `model.json` has under this key. Raises: CheckpointError."""
    file = storage.join(uri, name)
    try:
        content = storage.read_bytes(file)
    except FileNotFoundError:
        raise CheckpointError(f"{file}: is missing; {REMEDY}") from None
    if hashlib.sha256(content).hexdigest() != describe(uri)[key]:
        raise CheckpointError(f"{file}: sha256 differs from model.json; the file is damaged; {REMEDY}")
    return content


def _verifies(uri: str, name: str, sha256: str) -> bool:
    try:
        return storage.sha256(storage.join(uri, name)) == sha256
    except FileNotFoundError:
        return False
