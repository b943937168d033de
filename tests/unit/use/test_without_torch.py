"""`Recognizer` on an exported network: numbers of the checkpoint, in a process that cannot import torch."""

import json
import subprocess
import sys
import warnings

import checkpoints as tiny
import numpy as np
import pytest
from PIL import Image

from fer_ray import Recognizer
from fer_ray.cli import stages
from fer_ray.config import Config, PredictConfig
from fer_ray.data.drawn_face import render_face
from fer_ray.data_config import FacesConfig
from fer_ray.model import checkpoints
from fer_ray.use import networks, onnx_export
from fer_ray.use.networks import NOT_CALIBRATED
from fer_ray.use.onnx_model import OnnxError

FACES = FacesConfig(enlarge=0.3)  # not the default: it must come from the file
CODE = """
import json, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "timm", "ray", "onnx", "onnxscript"):
            raise RuntimeError(f"{name} was imported")
sys.meta_path.insert(0, Refuse())
from fer_ray import Recognizer
recognizer = Recognizer.load(sys.argv[1])
found = [recognizer(image) for image in sys.argv[2:]]
print(json.dumps([[[face.box, list(face.probabilities.values())] for face in one.faces] for one in found]))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A checkpoint, and an ONNX file that was written of it; their paths."""
    folder = tmp_path_factory.mktemp("exported")
    checkpoint = tiny.write(folder / "checkpoint", FACES, temperature=1.7)
    return checkpoint, tiny.export(checkpoint, folder / "model.onnx")


def test_faces_and_probabilities_are_those_of_the_checkpoint(exported, tmp_path):
    checkpoint, file = exported
    pictures = [render_face(np.random.default_rng(n), "fear", 1.0, np.random.default_rng(0), (180, 180), 50)
                for n in range(3)]
    paths = [str(tmp_path / f"{n}.png") for n in range(3)]
    for path, picture in zip(paths, [*pictures[:2], np.dstack([pictures[2]] * 3)], strict=True):  # grey and RGB
        Image.fromarray(picture).save(path)
    done = subprocess.run([sys.executable, "-W", "error", "-c", CODE, file, *paths], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = Recognizer.load(checkpoint)(paths)
    assert all(one.faces for one in expected)
    for one, faces in zip(expected, json.loads(done.stdout), strict=True):
        assert [list(face.box) for face in one.faces] == [box for box, _ in faces]
        for face, (_, probabilities) in zip(one.faces, faces, strict=True):
            assert list(face.probabilities.values()) == pytest.approx(probabilities, abs=1e-5)


def test_a_job_knows_of_the_file_what_it_knows_of_the_checkpoint(exported, capsys):
    checkpoint, file = exported
    one, other = networks.describe(checkpoint), networks.describe(file)
    assert (one.faces, one.temperature) == (other.faces, other.temperature) == (FACES, 1.7)
    assert one.sha256 != other.sha256  # what was predicted by one is predicted anew by the other
    config = Config(predict=PredictConfig(checkpoint=file))
    used, search = stages.network_and_search(config, "predict")
    assert used == other and search.config == FACES and stages.device_of(config, file) == "cpu"
    assert capsys.readouterr().out == ""
    with pytest.raises(OnnxError, match="fer_ray runs ONNX files on the CPU"):
        stages.network_and_search(Config(predict=PredictConfig(checkpoint=file, device="cuda")), "predict")
    missing = Config(predict=PredictConfig(checkpoint=file + ".onnx"))
    with pytest.raises(OnnxError, match="model.onnx.onnx: is missing"):
        stages.network_and_search(missing, "predict")


def test_what_the_file_says_is_used_and_what_it_lacks_is_told(exported, tmp_path):
    _, file = exported
    recognizer = Recognizer.load(file, faces="largest")
    assert recognizer.temperature == 1.7 and recognizer.search.config == FACES
    with pytest.raises(OnnxError, match="fer_ray runs ONNX files on the CPU"):
        Recognizer.load(file, device="cuda")
    model, description = checkpoints.load_model(exported[0])
    other = str(tmp_path / "other.onnx")
    onnx_export.write_onnx(onnx_export.trace(onnx_export.CropClassifier(model, 1.0), tiny.TINY), other,
                           onnx_export.metadata_of(description, None))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert Recognizer.load(other).temperature is None
    assert [str(one.message) for one in told] == [f"{other}: {NOT_CALIBRATED}"]
