"""Files that are no network of ours are refused in one line that names them."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fer_ray.config import Config, to_dict
from fer_ray.data.manifest import EXPRESSIONS
from fer_ray.use.onnx_model import OnnxError, OnnxModel

ABOUT = {"classes": list(EXPRESSIONS), "temperature": 1.0, "faces": to_dict(Config().faces), "backbone": "alexnet",
         "sha256": "0"}


def network(**metadata) -> bytes:
    """A network that says 1/8 of everything, with this metadata."""
    nodes = [helper.make_node("Shape", ["crops"], ["count"], start=0, end=1),
             helper.make_node("Concat", ["count", "eight"], ["shape"], axis=0),
             helper.make_node("ConstantOfShape", ["shape"], ["probabilities"],
                              value=helper.make_tensor("value", TensorProto.FLOAT, [1], [0.125]))]
    graph = helper.make_graph(nodes, "even", [helper.make_tensor_value_info(
        "crops", TensorProto.UINT8, ["N", 256, 256, 3])], [helper.make_tensor_value_info(
            "probabilities", TensorProto.FLOAT, ["N", 8])], [helper.make_tensor("eight", TensorProto.INT64, [1], [8])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {key: json.dumps(value) for key, value in metadata.items()})
    return onnx.ModelProto.SerializeToString(model)


def test_a_file_with_our_metadata_is_one_of_ours():
    model = OnnxModel(network(**ABOUT), "m.onnx")
    assert model.probabilities([np.zeros((256, 256), np.uint8)] * 3, batch_size=2).tolist() == [[0.125] * 8] * 3
    with pytest.raises(OnnxError, match="a crop of 48 x 40 px; the network takes 256 x 256"):
        model.probabilities([np.zeros((40, 48), np.uint8)])


@pytest.mark.parametrize(("content", "words"), [
    (b"", "no ONNX network that onnxruntime can run"), (b"PNG", "no ONNX network that onnxruntime can run"),
    (network(**ABOUT)[:-60], "no ONNX network that onnxruntime can run"),
    (network(), "was not written by jobs/export.py"),
    (network(**ABOUT | {"classes": "all"}), "was not written by jobs/export.py"),
    (network(**ABOUT | {"classes": ["happy", "sad"]}), r"its classes are \['happy', 'sad'\]")])
def test_other_files_are_refused(content, words, tmp_path):
    file = tmp_path / "m.onnx"
    file.write_bytes(content)
    with pytest.raises(OnnxError, match=f"{file}: .*{words}") as error:
        OnnxModel.load(str(file))
    assert "\n" not in str(error.value)


def test_a_missing_file_or_package_is_told(monkeypatch):
    with pytest.raises(OnnxError, match="nowhere.onnx: is missing"):
        OnnxModel.load("nowhere.onnx")
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(OnnxError, match=r"m.onnx: needs the package onnxruntime: pip install -e '.\[onnx\]'"):
        OnnxModel(network(**ABOUT), "m.onnx")
