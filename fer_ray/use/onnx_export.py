"""Write a network as files that run without fer_ray: ONNX in three precisions, and PyTorch's own format.

The preparation of the pixels and the calibration are part of each file. So whoever runs it needs to know only this: in
go uint8 crops [N, 256, 256, 3], red, green and blue, of faces with some background; out come float32 [N, 8]
probabilities of `EXPRESSIONS`.

PyTorch's format is that of `torch.export` and not TorchScript, which PyTorch no longer develops. The exporter to ONNX
starts from the same graph, so one tracing of the network makes both.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable

import numpy as np
import onnx
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

from fer_ray.data.faces import CROP_SIDE
from fer_ray.data.manifest import EXPRESSIONS
from fer_ray.model import augment
from fer_ray.use.onnx_model import INPUT, OUTPUT, OnnxError

CALIBRATION_BATCH = 8  # crops that pass at once while the ranges for int8 are measured


class CropClassifier(nn.Module):
    """A network with what comes before and after it: uint8 crops [N, 256, 256, 3] to probabilities, float32 [N, 8]."""

    def __init__(self, network: nn.Module, temperature: float, flip_average: bool = False,
                 dtype: torch.dtype = torch.float32):
        """A network with its surroundings.

        Args:
            network: any.
            temperature: divides the logits.
            flip_average: logits are the mean of those of a crop and of its mirror image.
            dtype: of the network's weights and arithmetic; pixels and probabilities are made in float32 always.
        """
        super().__init__()
        self.network = (copy.deepcopy(network) if dtype != torch.float32 else network).to(dtype).eval()
        self.temperature, self.flip_average, self.dtype = temperature, flip_average, dtype
        # constants of the preparation of pixels, which stays float32 whatever the type of the network
        self.mean = nn.Buffer(torch.from_numpy(augment.MEAN * 255).view(1, 3, 1, 1))
        self.std = nn.Buffer(torch.from_numpy(augment.STD * 255).view(1, 3, 1, 1))

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        """The centre of each crop, normalised; then the network; then softmax at the temperature."""
        first = (CROP_SIDE - augment.CROP) // 2
        centre = crops[:, first : first + augment.CROP, first : first + augment.CROP].permute(0, 3, 1, 2)
        images = ((centre.float() - self.mean) / self.std).to(self.dtype)
        logits = self.network(images).float()
        if self.flip_average:
            logits = (logits + self.network(images.flip(3)).float()) / 2
        return (logits / self.temperature).softmax(1)


def metadata_of(description: dict, temperature: float | None) -> dict:
    """What `onnx_model.METADATA` lists, of a checkpoint.

    Args:
        description: its `model.json`.
        temperature: that is stored with it; None if none was fitted.
    """
    return {"classes": list(EXPRESSIONS), "temperature": temperature, "faces": description["config"]["faces"],
            "backbone": description["backbone"], "sha256": description["sha256"]}


def trace(classifier: CropClassifier, name: str) -> torch.export.ExportedProgram:
    """The graph of a classifier for any number of crops. Raises: OnnxError if PyTorch cannot follow the network.

    `name`: of the network, for messages.
    """
    # two crops: PyTorch takes a dimension of 1 in the example for one that is always 1
    example = torch.zeros(2, CROP_SIDE, CROP_SIDE, 3, dtype=torch.uint8)
    try:
        with torch.no_grad():
            return torch.export.export(classifier, (example,), dynamic_shapes={INPUT: {0: torch.export.Dim("N")}})
    except Exception as error:  # whatever the code of a network raises while it is traced
        raise OnnxError(f"{name}: torch.export cannot follow this network ({_first_line(error)})") from error


def write_torch(program: torch.export.ExportedProgram, file: str, metadata: dict) -> None:
    """Write the graph in PyTorch's format; `torch.export.load(file).module()` runs it.

    `metadata`: stored as `metadata.json` within the file.
    """
    torch.export.save(program, file, extra_files={"metadata.json": json.dumps(metadata)})


def write_onnx(program: torch.export.ExportedProgram, file: str, metadata: dict) -> None:
    """Write the graph as one ONNX file. Raises: OnnxError if an operation has no counterpart in ONNX.

    `metadata`: stored in the file's metadata, each value as JSON.
    """
    try:
        exported = torch.onnx.export(program, input_names=[INPUT], output_names=[OUTPUT], dynamo=True, verbose=False)
    except torch.onnx.errors.OnnxExporterError as error:
        raise OnnxError(f"{file}: cannot be written ({_first_line(error)})") from error
    assert exported is not None
    model = exported.model_proto
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    del model.graph.value_info[:]  # they name the first dimension as PyTorch did
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in metadata.items()})
    onnx.save(model, file)


def quantize(source: str, file: str, crops: Iterable[np.ndarray]) -> None:
    """Write an ONNX file of ours in int8: weights, and activations whose ranges are measured on these crops.

    The last layer stays in float32: it is small, and its rounding errors would go straight into the probabilities.
    Weights have 7 bits, since on CPUs without instructions of their own for int8 (VNNI) the sums of 8 bits overflow.

    Args:
        source: the ONNX file in float32.
        file: to write.
        crops: uint8 [256, 256, 3] each.
    """
    folded = f"{file}.folded"  # with batch normalisation in the weights of the layer before it
    quant_pre_process(source, folded, skip_symbolic_shape=True)
    quantize_static(folded, file, _Reader(crops), quant_format=QuantFormat.QDQ, per_channel=True, reduce_range=True,
                    activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
                    nodes_to_exclude=_last_nodes(onnx.load(folded).graph))


class TorchModel:
    """A file of `write_torch`, with the interface of `OnnxModel`."""

    def __init__(self, file: str):
        self.model = torch.export.load(file).module()

    @torch.inference_mode()
    def probabilities(self, crops: list[np.ndarray], batch_size: int = 64) -> np.ndarray:
        """Calibrated probabilities, float32 [N, 8], of N > 0 crops, uint8 [256, 256] or [256, 256, 3]."""
        parts = (crops[first : first + batch_size] for first in range(0, len(crops), batch_size))
        return np.concatenate([self.model(torch.from_numpy(np.stack([augment.to_rgb(crop) for crop in part]))).numpy()
                               for part in parts])


def _last_nodes(graph: onnx.GraphProto) -> list[str]:
    """Names of the last linear layer and of all that follows it."""
    last = max(number for number, node in enumerate(graph.node) if node.op_type in ("Gemm", "MatMul"))
    return [node.name for node in graph.node[last:]]


class _Reader(CalibrationDataReader):
    """Batches of crops, as onnxruntime asks for them."""

    def __init__(self, crops: Iterable[np.ndarray]):
        every = list(crops)
        self.batches = iter([every[first : first + CALIBRATION_BATCH]
                             for first in range(0, len(every), CALIBRATION_BATCH)])

    def get_next(self) -> dict[str, np.ndarray]:
        """The next batch; an empty dictionary after the last one."""
        batch = next(self.batches, None)
        return {INPUT: np.stack(batch)} if batch else {}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
