"""A trained network by its file: a checkpoint, or the ONNX file that jobs/export.py made of one."""

from __future__ import annotations

import dataclasses

from fer_ray import storage
from fer_ray.data_config import FacesConfig
from fer_ray.model import checkpoints, registry
from fer_ray.use.onnx_model import OnnxModel
from fer_ray.use.recognition import Network

NOT_CALIBRATED = ("its probabilities are not calibrated, but as the network gives them, which is often too sure; "
                  "jobs/evaluate.py of its run fits a temperature if there are enough validation images, and stores it")


@dataclasses.dataclass(frozen=True)
class Description:
    """What is known of a network beside its weights."""

    uri: str
    """Of the checkpoint's folder, or of the ONNX file."""
    faces: FacesConfig
    """How the faces were found and cut that it was trained on."""
    temperature: float | None
    """That its probabilities are calibrated by; None if there is none."""
    sha256: str
    """Of a checkpoint's weights, or of a whole ONNX file."""


def find(source: str, name: str = "") -> str:
    """URI of a network: `source` itself, which is a checkpoint or an ONNX file, or the best one of a run in a storage.

    Raises: checkpoints.CheckpointError; storage.DamagedError; storage.StorageError.
    """
    if is_exported(source):
        return source
    is_storage = name or not storage.exists(storage.join(source, "model.json"))
    if is_storage and (name or storage.exists(storage.join(source, "best"))):
        return registry.find(source, name)
    return source


def is_exported(uri: str) -> bool:
    """Whether this names an ONNX file, which runs on the CPU alone."""
    return uri.endswith(".onnx")


def describe(uri: str, loaded: Network | None = None) -> Description:
    """What is known of a network. `loaded`: what `load` has made of it, so that an ONNX file is not read again.

    Raises: checkpoints.CheckpointError; onnx_model.OnnxError; storage.StorageError.
    """
    if is_exported(uri):
        exported = loaded if isinstance(loaded, OnnxModel) else OnnxModel.load(uri)
        return Description(uri, _faces_config_of(exported.faces), exported.temperature, exported.file_sha256)
    description = checkpoints.describe(uri)
    return Description(uri, _faces_config_of(description["config"]["faces"]), checkpoints.read_temperature(uri),
                       description["sha256"])


def load(uri: str, device: str = "auto", threads: int = 0) -> Network:
    """A network, at the temperature that is stored with it.

    `device`: auto, cpu or cuda. `threads`: of torch in this whole process, or of onnxruntime; 0: as many as it has.

    Raises: checkpoints.CheckpointError; onnx_model.OnnxError, also if an ONNX file is to run on a GPU;
        storage.StorageError.
    """
    if is_exported(uri):
        return OnnxModel.load(uri, device, threads)
    import torch  # here, since an exported network needs none

    from fer_ray.model.predictor import Predictor

    temperature = checkpoints.read_temperature(uri) or 1.0
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return Predictor.from_checkpoint(uri, threads, device, temperature)


def _faces_config_of(trained: dict) -> FacesConfig:
    """The options of that version of the program that trained, as far as this one has them."""
    known = {field.name for field in dataclasses.fields(FacesConfig)}
    return FacesConfig(**{key: value for key, value in trained.items() if key in known})
