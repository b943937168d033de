"""Exported networks give the original's probabilities; what does not is an error that leaves nothing behind."""

import json
from pathlib import Path

import cv2
import numpy as np
import onnx
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fer_ray import storage
from fer_ray.config import Config, EvaluateConfig, ExportConfig, TrainConfig, to_dict
from fer_ray.data import prepared_set
from fer_ray.data.manifest import EXPRESSIONS, DataError
from fer_ray.model import backbones, checkpoints
from fer_ray.model.predictor import Predictor
from fer_ray.use import export, export_page, onnx_export
from fer_ray.use.onnx_model import OnnxError, OnnxModel

FORMATS = ["onnx", "onnx_fp16", "onnx_int8", "torch"]
TEMPERATURE = 1.7


def draw_crop(seed: int) -> np.ndarray:
    """A smooth picture, in colour or grey, uint8 [256, 256(, 3)]."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3)[: 2 + seed % 2], dtype=np.uint8)
    return cv2.resize(noise, (256, 256))


def prepare(uri: str, splits: list[str]) -> None:
    """A prepared set with an image for each of these splits, in parts of three."""
    rows = np.arange(len(splits))
    index = pd.DataFrame({"row": rows, "part": [f"part-{row // 3}" for row in rows], "part_row": rows % 3,
                          "split": splits, "expression": [EXPRESSIONS[row % 8] for row in rows]})
    for part, of_part in index.groupby("part"):
        crops = [cv2.imencode(".png", draw_crop(row))[1].tobytes() for row in of_part["row"]]
        file = Path(prepared_set.part_uri(uri, str(part)))
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"crop": crops}), file)
    files = prepared_set.write_table(uri, "index", pa.Table.from_pandas(index))
    storage.write_json(f"{uri}/prepared.json", {
        "schema_version": prepared_set.SCHEMA_VERSION, "request": "", "fingerprint": "print", "files": files,
        "counts": {}, "config": {}})


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A storage with a prepared set and a checkpoint whose probabilities differ from image to image."""
    root = tmp_path_factory.mktemp("exported")
    prepare(f"{root}/prepared/one", ["test"] * 7 + ["val"] * 3 + ["train"])
    torch.manual_seed(0)
    model = backbones.build("timm:test_resnet@96").eval()
    with torch.no_grad():
        backbones.head(model, "timm:test_resnet@96").weight *= 200
    checkpoints.save(f"{root}/checkpoint", "timm:test_resnet@96", model, {}, {
        "progress": {"epoch": 1, "step": 0}, "at_end_of_epoch": True, "metrics": {"val_balanced_accuracy": 0.5},
        "config": to_dict(Config(train=TrainConfig(flip_average=True))), "data_fingerprint": "print"})
    checkpoints.write_calibration(f"{root}/checkpoint", TEMPERATURE, None)
    return root


def run(root: Path, name: str, formats: list) -> list[dict]:
    config = Config(name=name, storage=str(root), export=ExportConfig(formats=formats),
                    evaluate=EvaluateConfig(batch_size=2))
    arguments = config, f"{root}/prepared/one", f"{root}/checkpoint"
    export.check(*arguments)
    return list(export.export_checkpoint(*arguments, threads=1))


@pytest.fixture(scope="module")
def rows(root):
    return run(root, "all", FORMATS)


@pytest.fixture(scope="module")
def original(root):
    return Predictor.from_checkpoint(f"{root}/checkpoint", temperature=TEMPERATURE)


def test_every_format_is_scored_beside_the_original(root, rows):
    assert [row["format"] for row in rows] == ["original", *FORMATS]
    by_format = {row["format"]: row for row in rows}
    assert rows[0]["largest_difference"] == 0 and rows[0]["same_expression"] == 1
    assert 0 < by_format["onnx"]["largest_difference"] < 1e-5 < by_format["onnx_int8"]["largest_difference"]
    assert by_format["torch"]["largest_difference"] < 1e-5 < by_format["onnx_fp16"]["largest_difference"] < 0.02
    assert all(by_format[name]["balanced_accuracy"] == rows[0]["balanced_accuracy"] for name in ("onnx", "torch"))
    assert all(row["images_per_s"] > 0 for row in rows)
    sizes = {name: by_format[name]["bytes"] for name in FORMATS}
    assert sizes["onnx_int8"] < sizes["onnx_fp16"] < sizes["onnx"]


def test_the_folder_tells_what_lies_there(root, rows):
    folder = root / "exports/all"
    assert {path.name for path in folder.iterdir()} == {*export.FILES.values(), "export.md", "export.json"}
    summary = json.loads((folder / "export.json").read_text())
    assert summary["rows"] == rows and summary["test_images"] == 7 and summary["classes"] == list(EXPRESSIONS)
    for row in rows[1:]:
        file = folder / row["file"]
        assert file.stat().st_size == row["bytes"] and storage.sha256(str(file)) == row["sha256"]
    page = (folder / "export.md").read_text()
    assert "uint8 [N, 256, 256, 3]" in page and "divided by the temperature 1.7" in page
    assert all("| " + " | ".join(export_page.cells(row)) + " |" in page for row in rows)


@pytest.mark.parametrize("count", [0, 1, 5])
@pytest.mark.parametrize(("name", "limit"), [("onnx", 1e-5), ("onnx_fp16", 0.02), ("onnx_int8", 0.5)])
def test_any_number_of_crops_in_colour_and_grey(root, rows, original, name, limit, count):
    model = OnnxModel.load(f"{root}/exports/all/{export.FILES[name]}")
    crops = [draw_crop(100 + n) for n in range(count)]
    made = model.probabilities(crops, batch_size=2)
    assert made.shape == (count, 8) and made.dtype == np.float32
    assert made == pytest.approx(original.probabilities(crops), abs=limit) and made.sum(1) == pytest.approx(1, abs=1e-5)
    assert (model.temperature, model.backbone) == (TEMPERATURE, "timm:test_resnet@96")
    assert model.faces == to_dict(Config().faces)


def test_the_signature_is_what_others_read(root, rows):
    graph = onnx.load(root / "exports/all/model.onnx").graph
    for value, name, shape, kind in ((graph.input[0], "crops", ["N", 256, 256, 3], onnx.TensorProto.UINT8),
                                     (graph.output[0], "probabilities", ["N", 8], onnx.TensorProto.FLOAT)):
        tensor = value.type.tensor_type
        assert value.name == name and tensor.elem_type == kind
        assert [dim.dim_param or dim.dim_value for dim in tensor.shape.dim] == shape


def test_the_file_of_pytorch_runs_without_fer_ray_and_names_its_classes(root, rows, original):
    extra = {"metadata.json": ""}
    program = torch.export.load(root / "exports/all/model.pt2", extra_files=extra)
    crop = draw_crop(7)
    made = program.module()(torch.from_numpy(crop)[None]).detach().numpy()
    assert made == pytest.approx(original.probabilities([crop]), abs=1e-5)
    assert json.loads(extra["metadata.json"])["classes"] == list(EXPRESSIONS)


class Off:
    """A network whose probabilities are off by this much."""

    def __init__(self, root: Path, by: float):
        self.original, self.by = Predictor.from_checkpoint(f"{root}/checkpoint", temperature=TEMPERATURE), by

    def probabilities(self, crops, batch_size):
        return self.original.probabilities(crops, batch_size) + np.float32(self.by)


@pytest.mark.parametrize(("name", "by"), [("onnx", 2e-4), ("onnx", np.nan), ("torch", 2e-4), ("onnx_fp16", 0.03),
                                          ("onnx_int8", 0.2), ("onnx_int8", np.nan)])
def test_a_mismatch_is_an_error_and_leaves_nothing(root, monkeypatch, name, by):
    monkeypatch.setattr(export, "_write", lambda network, about, flips, formats, folder, *_: [
        Path(folder, export.FILES[one]).write_bytes(b"x") for one in formats])
    monkeypatch.setattr(export, "_open", lambda *_: Off(root, 0.0))
    run(root, "off", [name])
    assert (root / "exports/off/export.json").exists()
    monkeypatch.setattr(export, "_open", lambda *_: Off(root, by))
    with pytest.raises(export.MismatchError, match=f"export.formats {name}: .* differ from the original's by"):
        run(root, "off", [name])
    assert not (root / "exports/off").exists()


def test_what_cannot_be_exported_is_told_before_the_work(root, monkeypatch):
    checkpoint = f"{root}/checkpoint"
    for name, splits, words in (("no_test", ["train", "val"], "the test split is empty"),
                                ("no_val", ["train", "test"], "export.formats onnx_int8 is calibrated on it")):
        prepare(f"{root}/prepared/{name}", splits)
        with pytest.raises(DataError, match=words):
            export.check(Config(export=ExportConfig(formats=["onnx_int8"])), f"{root}/prepared/{name}", checkpoint)
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: name != "onnxruntime" or None)
    with pytest.raises(OnnxError, match=r"export: needs the package onnxruntime: pip install -e '.\[onnx\]'"):
        export.check(Config(), f"{root}/prepared/one", checkpoint)


def test_a_network_that_cannot_be_traced_is_named():
    class Branching(torch.nn.Module):
        def forward(self, images):
            return images.mean((2, 3)) if images.sum() > 0 else images.amax((2, 3))

    with pytest.raises(OnnxError, match="timm:odd: torch.export cannot follow this network"):
        onnx_export.trace(onnx_export.CropClassifier(Branching(), 1.0), "timm:odd")
