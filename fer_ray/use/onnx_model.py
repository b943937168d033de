"""An exported network, run by onnxruntime: crops in, calibrated probabilities out. Needs neither torch nor Ray."""

from __future__ import annotations

import hashlib
import json
from types import UnionType

import numpy as np

from fer_ray import storage
from fer_ray.data.faces import CROP_SIDE
from fer_ray.data.manifest import EXPRESSIONS
from fer_ray.errors import UserError
from fer_ray.model import augment

INPUT, OUTPUT = "crops", "probabilities"  # names in the exported network
# What the metadata of an exported network holds, as JSON, under keys of these names.
METADATA: dict[str, type | UnionType] = {"classes": list, "temperature": float | None, "faces": dict, "backbone": str,
                                         "sha256": str}
EXTRA = "pip install -e '.[onnx]'"


class OnnxError(UserError):
    """An ONNX file cannot be used or written; the message names the file and the reason."""


class OnnxModel:
    """A network that `fer_ray export` wrote as ONNX, on the CPU.

    Attributes:
        batch_size: crops of a forward pass that suit it.
        temperature: by which the network divides its logits, as a part of it; None if none was fitted, and it does not.
        faces: the options by which the faces were cropped for training, as `FacesConfig` has them.
        backbone: name of the network.
        sha256: of the weights of the checkpoint that was exported.
        file_sha256: of the file itself.
    """

    batch_size = 8  # as of `model.predictor` on a CPU
    shares_cpus = True

    def __init__(self, content: bytes, name: str, threads: int = 0):
        """Build the network from the bytes of an ONNX file.

        Args:
            content: of the file.
            name: of the file, for messages.
            threads: of onnxruntime; 0: one for each core.

        Raises: OnnxError if onnxruntime is not installed, or the file is not one that `fer_ray export` wrote.
        """
        try:
            import onnxruntime
        except ImportError:
            raise OnnxError(f"{name}: needs the package onnxruntime: {EXTRA}") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # its threads wait for the next batch without computing, since the cores have faces to find meanwhile
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3  # errors; warnings are about the graph, which users cannot change
        try:
            self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has a class of its own for each status, all directly below Exception
            raise OnnxError(f"{name}: no ONNX network that onnxruntime can run ({_one_line(error)})") from None
        self.file_sha256 = hashlib.sha256(content).hexdigest()
        told = _read_metadata(self.session.get_modelmeta().custom_metadata_map, name)
        self.temperature, self.faces, self.backbone, self.sha256 = (
            told[key] for key in ("temperature", "faces", "backbone", "sha256"))

    @classmethod
    def load(cls, uri: str, device: str = "auto", threads: int = 0) -> OnnxModel:
        """The network of a local file or one in a bucket.

        Raises: OnnxError, also if it is to run on a GPU; storage.StorageError.
        """
        check_device(uri, device)
        try:
            return cls(storage.read_bytes(uri), uri, threads)
        except FileNotFoundError:
            raise OnnxError(f"{uri}: is missing; jobs/export.py writes it") from None

    def probabilities(self, crops: list[np.ndarray], batch_size: int = 0) -> np.ndarray:
        """Calibrated probabilities, float32 [N, 8], of N crops, uint8 [256, 256] or [256, 256, 3].

        A grey crop is repeated into three channels, as in training. `batch_size`: crops of a forward pass; 0: that of
        the class.

        Raises: OnnxError if a crop has another size.
        """
        if wrong := next((crop.shape for crop in crops if crop.shape[:2] != (CROP_SIDE, CROP_SIDE)), None):
            raise OnnxError(f"a crop of {wrong[1]} x {wrong[0]} px; the network takes {CROP_SIDE} x {CROP_SIDE}")
        size = batch_size or self.batch_size
        made = np.empty((len(crops), len(EXPRESSIONS)), np.float32)
        for first in range(0, len(crops), size):
            batch = np.stack([augment.to_rgb(crop) for crop in crops[first : first + size]])
            made[first : first + size] = self.session.run([OUTPUT], {INPUT: batch})[0]
        return made


def check_device(uri: str, device: str) -> None:
    """Raises: OnnxError if the file is to run on a GPU."""
    if device == "cuda":
        raise OnnxError(f"{uri}: fer_ray runs ONNX files on the CPU; load the checkpoint to use a GPU")


def _read_metadata(entries: dict[str, str], name: str) -> dict:
    """What `METADATA` lists. Raises: OnnxError if it is missing, or for other classes than this version knows."""
    try:
        told = {key: json.loads(entries[key]) for key in METADATA}
    except (KeyError, ValueError):
        told = {}
    if not told or not all(isinstance(told[key], kind) for key, kind in METADATA.items()):
        raise OnnxError(f"{name}: was not written by jobs/export.py: its metadata lack {', '.join(METADATA)}")
    if told["classes"] != list(EXPRESSIONS):
        raise OnnxError(f"{name}: its classes are {told['classes']}, but this version of fer_ray predicts "
                        f"{list(EXPRESSIONS)}")
    return told


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
