"""What data sets, checkpoints and tables bring along is data: nothing of it runs, opens another file or is shown raw.

The threat model is SECURITY.md.
"""

import ast
import hashlib
import io
import json
import os
import pickle
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from fer_ray import config, options, storage
from fer_ray.data import manifest, pixels, prepared_set, sources
from fer_ray.data_config import DataConfig, SourceConfig, TableConfig
from fer_ray.model import checkpoints, metrics
from fer_ray.report import data_figures, figures, pages, prepared_page
from fer_ray.train import tracking

REPO = Path(__file__).parents[2]
OUTSIDE, NOT_THERE = "path leaves the data set's folder", "file not found"


def put(path, value=99):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((40, 40), value, np.uint8))
    return path


def read(root, kind="auto", **more):
    """File names that are used, and reasons by file name of those that are not."""
    found = sources.read_manifest(DataConfig(kind, str(root), **more), "image")
    assert all(pixels.read(image) for image in found.rows.column("image").to_pylist())  # those used can be opened
    return (sorted(Path(i).name for i in found.rows.column("image").to_pylist()),
            {Path(r["image"]).name: r["reason"] for r in found.rejected.to_pylist()})


@pytest.fixture
def secret(tmp_path):
    """A picture outside every data set."""
    return put(tmp_path / "elsewhere/secret.png")


# --- no path leaves its root -----------------------------------------------------------------------------


@pytest.mark.parametrize("written", ["../../elsewhere/secret.png", "{elsewhere}/secret.png", "file://{elsewhere}/secret.png",
                                     "link.png", "folder/secret.png", "s3://bucket/secret.png", "https://x.org/secret.png"])
@pytest.mark.parametrize("labels", [["fear"], ["fear", "sad"]])  # rejected for another reason, it would still be shown
def test_a_table_names_no_image_outside_its_root(tmp_path, secret, written, labels):
    root = tmp_path / "set"
    put(root / "images/good.png")
    os.symlink(secret, root / "images/link.png")
    os.symlink(secret.parent, root / "images/folder")
    name = written.format(elsewhere=secret.parent)
    (root / "t.csv").write_text("image,expression\ngood.png,fear\n" + "".join(f"{name},{label}\n" for label in labels))
    used, reasons = read(root, "table")
    assert used == ["good.png"]
    assert reasons == {"link.png": OUTSIDE, "folder": OUTSIDE,  # no link is left unsaid
                       Path(written).name: NOT_THERE if "://" in written else OUTSIDE}


def test_an_absolute_name_below_the_root_and_a_root_that_is_a_link_are_fine(tmp_path):
    put(tmp_path / "disk/images/a.png"), put(tmp_path / "disk/images/b.png")
    os.symlink("a.png", tmp_path / "disk/images/c.png")
    os.symlink(tmp_path / "disk", tmp_path / "set")
    (tmp_path / "disk/t.csv").write_text(f"image,expression\n{tmp_path}/set/images/a.png,fear\n"
                                         f"{tmp_path}/disk/images/b.png,fear\nc.png,fear\n")
    assert read(tmp_path / "set", "table") == (["a.png", "b.png", "c.png"], {})


def test_images_elsewhere_are_named_by_the_configuration_and_never_by_a_link(tmp_path):
    put(tmp_path / "elsewhere/a.png")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/t.csv").write_text("image,expression\na.png,fear\n")
    os.symlink(tmp_path / "elsewhere", tmp_path / "set/images")
    with pytest.raises(manifest.DataError, match=OUTSIDE):
        read(tmp_path / "set", "table")
    for named in ("../elsewhere", str(tmp_path / "elsewhere")):
        assert read(tmp_path / "set", "table", table=TableConfig(images=named)) == (["a.png"], {"images": OUTSIDE})


def test_links_out_of_a_folder_of_classes_are_rejected(tmp_path, secret):
    put(tmp_path / "set/fear/good.png")
    os.symlink(secret, tmp_path / "set/fear/file.png")
    os.symlink(secret.parent, tmp_path / "set/happy")
    assert read(tmp_path / "set") == (["good.png"], {"file.png": OUTSIDE, "happy": OUTSIDE})


def test_a_link_beside_other_data_sets_is_no_data_set(tmp_path):
    put(tmp_path / "private/fear/secret.png"), put(tmp_path / "sets/one/fear/a.png")
    os.symlink(tmp_path / "private", tmp_path / "sets/album")
    assert read(tmp_path / "sets")[0] == ["a.png"]
    sources = [SourceConfig("folder", "album")]  # the user may say so
    assert read(tmp_path / "sets", sources=sources)[0] == ["secret.png"]


@pytest.mark.parametrize(("name", "text"), [
    ("fer2013.csv", "emotion,pixels,Usage\n0," + " ".join(["7"] * 64) + ",Training\n"),
    ("list_patition_label.txt", "train_00001.jpg 5\n"), ("t.csv", "image,expression\na.png,fear\n"),
    ("training.csv", "subDirectory_filePath,expression\na.png,1\n")])
def test_tables_behind_links_out_of_the_root_and_pipes_are_not_read(tmp_path, name, text):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / name).write_text(text)
    for place in ("linked", "piped"):
        put(tmp_path / place / "images/a.png")
    os.symlink(tmp_path / "elsewhere" / name, tmp_path / "linked" / name)
    os.mkfifo(tmp_path / "piped" / name)
    for place in ("linked", "piped"):
        with pytest.raises(manifest.DataError, match="no layout that is known"):
            read(tmp_path / place)


def test_label_files_behind_links_are_not_read(tmp_path):
    private = tmp_path / "credentials"
    private.write_text("aws_secret_access_key = x")
    put(tmp_path / "CK+/cohn-kanade-images/S005/001/S005_001_00000001.png")
    (tmp_path / "CK+/Emotion/S005/001").mkdir(parents=True)
    os.symlink(private, tmp_path / "CK+/Emotion/S005/001/S005_001_00000001_emotion.txt")
    with pytest.raises(manifest.DataError, match="sequence without label"):
        read(tmp_path / "CK+")
    put(tmp_path / "net/train_set/images/1.jpg"), put(tmp_path / "net/train_set/images/2.jpg")
    (tmp_path / "net/train_set/annotations").mkdir()
    np.save(tmp_path / "net/train_set/annotations/1_exp.npy", np.array("6"))
    os.symlink(private, tmp_path / "net/train_set/annotations/2_exp.npy")
    assert read(tmp_path / "net", "affectnet") == (["1.jpg"], {"2.jpg": "image without annotation"})


def test_names_that_no_file_can_have_dead_links_and_pipes_are_rejected(tmp_path):
    root = tmp_path / "set"
    put(root / "images/good.png")
    os.symlink(root / "none.png", root / "images/dead.png")
    os.symlink("loop.png", root / "images/loop.png")
    os.mkfifo(root / "images/pipe.png")
    names = ["dead.png", "loop.png", "pipe.png", "x" * 300 + ".png", "zero\0.png", "zero\0/a.png", ".", ".."]
    (root / "t.csv").write_text("image,expression\ngood.png,fear\n" + "".join(f"{n},fear\n" for n in names))
    used, reasons = read(root, "table")
    assert used == ["good.png"] and set(reasons.values()) == {NOT_THERE} and len(reasons) >= len(names) - 1
    put(tmp_path / "classes/fear/good.png")
    os.mkfifo(tmp_path / "classes/fear/pipe.txt")
    assert read(tmp_path / "classes")[1] == {"pipe.txt": NOT_THERE}


def test_a_picture_whose_name_reads_like_a_row_of_a_table_is_that_picture(tmp_path, secret):
    os.makedirs(tmp_path / "set/fear")
    pq.write_table(pa.table({"c.png": [secret.read_bytes()]}), tmp_path / "elsewhere/t.parquet")
    os.symlink(tmp_path / "elsewhere/t.parquet", tmp_path / "set/fear/t.parquet")
    put(tmp_path / "set/fear/t.parquet#row=000000000,column=c.png", value=7)
    found = sources.read_manifest(DataConfig("folder", str(tmp_path / "set")))
    assert [int(pixels.load(i)[0, 0]) for i in found.rows.column("image").to_pylist()] == [7]


def test_the_page_of_a_prepared_set_shows_no_picture_from_outside(secret):
    rejected = pd.DataFrame({"image": [str(secret)] * 3, "reason": [OUTSIDE, NOT_THERE, "no face found"]})
    assert list(prepared_page._rejected_examples(rejected)) == ["no face found"]


def test_only_common_image_formats_are_decoded():
    """Pillow reads EPS by running Ghostscript, and dozens of formats that nobody tests."""
    picture = Image.fromarray(np.full((40, 40), 7, np.uint8))
    for kind in ("PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG", "MPO"):
        content = io.BytesIO()
        picture.save(content, kind)
        assert pixels.decode(content.getvalue()).shape[:2] == (40, 40)
    for kind in ("EPS", "PDF", "SGI", "TGA", "PCX"):
        content = io.BytesIO()
        picture.save(content, kind)
        with pytest.raises(ValueError, match="not an image"):
            pixels.decode(content.getvalue())


# --- nothing is interpreted --------------------------------------------------------------------------------

PICTURES = ("bars", "rejected", "sizes", "crops", "leaks", "conflicts", "duplicates")
LEDGER = {"files": 1, "images": 0, "rejected": 0, "read": 0, "unused": {"<script>": 1}, "pictures": 0, "other": {},
          "absent": 0, "junk": 0}
EVIL = "<script>alert(1)</script>{{7*7}}$\\frac{${% raw %}"


def test_pages_show_names_and_do_not_run_them():
    scores = metrics.evaluate(np.eye(8)[[0, 1]] * 0.93 + 0.00875, np.array([0, 1]), ["p", "q"])
    card = dict.fromkeys(("intended_use", "limits", "provenance", "licence"), EVIL)
    counts = {EVIL: {"train": {"anger": 1}}}
    group = {"value": EVIL, "balanced_accuracy": 0.5, "balanced_accuracy_ci95": None, "accuracy": 0.5, "images": 1,
             "people": 1, "small": True, "chance": 0.5, "no_interval": "few"}
    result = {"name": EVIL, "created": "now", "command": EVIL, "split": "subject", "leaks": {"subject": 0},
              "leak_examples": [{"kind": EVIL, "splits": EVIL, "images": 1, "example_a": EVIL, "example_b": EVIL}],
              "remarks": [EVIL], "unseen": [EVIL], "shortcuts": {"warning": EVIL, "reason": EVIL},
              "conflicts": 0, "near_duplicates": 0, "metrics": scores,
              "validation": {"balanced_accuracy": 0.5, "epoch": 1}, "rejected": {EVIL: 2}, "floor": None,
              "counts": {"read": {EVIL: {"anger": 1}}, "before": {}, "after": counts},
              "config": {EVIL: EVIL, "card": card},
              "train": {"backbone": EVIL, "weights": EVIL, "lr": 1, "momentum": 0, "batch_size": 1, "epochs_run": 1},
              "versions": {EVIL: EVIL}, "checkpoint": EVIL, "fingerprint": EVIL, "history": [], "also": [],
              "groups": {EVIL: [group]}, "labels": None, "calibration": None}
    shown = {"montage": [], "augmented": [], "explained": {}}
    page = pages.render(result, shown, pages.draw(result, shown))
    index = pd.DataFrame({"subject": [EVIL], "face_found": [True]})
    of_set = {"folds": 0, "faces": [EVIL], "ledger": LEDGER, "config": {"faces": {"detector": EVIL}}}
    prepared = pages.render_prepared(EVIL, result | of_set, index, result["leak_examples"], 0, dict.fromkeys(PICTURES))
    for shown in (page, prepared):
        assert "<script" not in shown and "&lt;script&gt;alert(1)" in shown and "{{7*7}}" in shown
    sheet = {"fear": [{"crop": np.zeros((9, 9), np.uint8), "title": EVIL}]}
    assert figures.png(data_figures.sheet_figure(sheet["fear"])) and figures.png(data_figures.bars_figure(counts))


def test_names_from_folders_reach_the_terminal_without_control_characters(tmp_path, capsys):
    names = (b"\x1b]0;owned\x07", b"s\xe9t")
    for name in names:
        folder = os.path.join(os.fsencode(tmp_path), name, b"fear")
        os.makedirs(folder)
        os.rename(put(tmp_path / "x.png"), os.path.join(folder, b"a.png"))
    found = sources.read_manifest(DataConfig(root=str(tmp_path)), "image")
    assert set(found.rows.column("dataset").to_pylist()) == {r"\x1b]0;owned\x07", r"s\udce9t"}
    said = capsys.readouterr().out
    assert r"\x1b]0;owned" in said and "\x1b" not in said
    os.makedirs(tmp_path / "other/\x1b[31mrage")
    put(tmp_path / "other/\x1b[31mrage/a.png")
    with pytest.raises(manifest.DataError) as error:
        read(tmp_path / "other", "folder")
    assert "\x1b" not in str(error.value)


class Payload:
    """Leaves a file when it is unpickled."""

    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return os.mkdir, (self.file,)


def test_a_checkpoint_that_is_a_pickle_is_refused_and_does_not_run(tmp_path):
    ran = tmp_path / "ran"
    described = {"progress": {"epoch": 0, "step": 0}, "at_end_of_epoch": False, "metrics": {},
                 "config": config.to_dict(config.Config())}
    checkpoints.save(str(tmp_path), "resnet18", torch.nn.Linear(1, 1), {}, described)
    description = json.loads((tmp_path / "model.json").read_text())
    sink = io.BytesIO()
    torch.save({"progress": Payload(ran)}, sink)
    for content in (sink.getvalue(), pickle.dumps(Payload(ran))):
        (tmp_path / "train_state.pt").write_bytes(content)
        description["train_state_sha256"] = hashlib.sha256(content).hexdigest()
        (tmp_path / "model.json").write_text(json.dumps(description))
        with pytest.raises(checkpoints.CheckpointError, match="holds more than tensors"):
            checkpoints.load_train_state(str(tmp_path))
        assert not ran.exists()


@pytest.mark.parametrize("nested", [lambda c: c, lambda c: pa.StructArray.from_arrays([c], ["bytes"]),
                                    lambda c: pa.ListArray.from_arrays([0, 1], c)], ids=["column", "struct", "list"])
def test_parquet_from_elsewhere_unpickles_nothing(tmp_path, nested):
    """Once Ray Data is imported, as on every worker, pyarrow makes objects of the columns that say so."""
    from ray.data._internal.object_extensions.arrow import ArrowPythonObjectArray

    ran, data, root = tmp_path / "ran", tmp_path / "data", tmp_path / "prepared"
    column = nested(ArrowPythonObjectArray.from_objects([Payload(ran)]))
    with pytest.raises(FileExistsError):  # it would run: here twice
        column.to_pylist(), column.to_pylist()
    ran.rmdir()
    for folder in (data / "images", root / "images"):
        folder.mkdir(parents=True)
    put(data / "images/a.png")
    pq.write_table(pa.table({"image": column, "expression": ["fear"]}), data / "t.parquet")
    for file in ("index.parquet", "images/part.parquet"):
        pq.write_table(pa.table(dict.fromkeys(prepared_set.PART_SCHEMA.names, column)), root / file)
    content = (root / "index.parquet").read_bytes()
    (root / "prepared.json").write_text(json.dumps(
        {"schema_version": prepared_set.SCHEMA_VERSION, "request": "", "fingerprint": "", "images": "", "counts": {},
         "config": {}, "files": {"index.parquet": prepared_set.promise(content)}}))
    for reader in (lambda: read(data, "table", unclaimed="report"),
                   lambda: pixels.load(f"{data}/t.parquet#row=000000000,column=image"),
                   lambda: prepared_set.read_table(str(root), "index"),
                   lambda: prepared_set.read_part(str(root), "part"),
                   lambda: prepared_set.read_metadata(str(root), ["part"])):
        with pytest.raises(manifest.DataError, match="no Python objects"):
            reader()
    assert not ran.exists()


# --- no dangerous call in the sources ----------------------------------------------------------------------

FORBIDDEN = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load", "pickle.loads",
             "pickle.Unpickler", "ray.cloudpickle.load", "ray.cloudpickle.loads", "dill.load", "dill.loads",
             "joblib.load", "pandas.read_pickle", "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load",
             "marshal.loads", "shelve.open", "subprocess.getoutput", "subprocess.getstatusoutput",
             "pyarrow.parquet.read_table", "pandas.read_parquet"}  # manifest.read_parquet looks before it reads
UNLESS = {"torch.load": ("weights_only", True),  # the argument that makes the call a safe one
          "torch.hub.load_state_dict_from_url": ("weights_only", True)}
NEVER = {"shell": True, "allow_pickle": True}  # arguments, whatever the call


def dangers(source: str) -> list[str]:
    """Calls in a source text that would run what they read, by their line."""
    tree, names, found = ast.parse(source), {}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {a.asname: a.name for a in node.names if a.asname}
        elif isinstance(node, ast.ImportFrom):
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    for call in (n for n in ast.walk(tree) if isinstance(n, ast.Call)):
        first, _, rest = ast.unparse(call.func).partition(".")
        name = names.get(first, first) + (f".{rest}" if rest else "")
        given = {k.arg: getattr(k.value, "value", None) for k in call.keywords}
        unsafe = name in UNLESS and given.get(UNLESS[name][0]) is not UNLESS[name][1]
        if name in FORBIDDEN or unsafe or any(given.get(k, False) not in (False, 0) for k in NEVER):
            found.append(f"{call.lineno}: {name}")
    return found


@pytest.mark.parametrize("file", sorted(p.relative_to(REPO) for folder in ("fer_ray", "jobs", "scripts", "cluster")
                                        for p in (REPO / folder).rglob("*.py")), ids=str)
def test_no_source_runs_what_it_reads(file):
    allowed = ["pyarrow.parquet.read_table"] if file == Path("fer_ray/data/manifest.py") else []
    assert [found.partition(": ")[2] for found in dangers((REPO / file).read_text())] == allowed


@pytest.mark.parametrize("planted", [
    "import pickle; pickle.loads(x)", "from pickle import load as l; l(f)", "import torch; torch.load(f)",
    "import torch as t; t.load(f, weights_only=False)", "import yaml; yaml.load(f, yaml.Loader)", "eval(x)", "exec(x)",
    "import subprocess; subprocess.run(c, shell=True)", "import os; os.system(c)", "import joblib; joblib.load(f)",
    "import numpy as np; np.load(f, allow_pickle=True)", "import pandas as pd; pd.read_pickle(f)",
    "import subprocess as s; s.Popen(c, shell=wanted)", "from ray import cloudpickle; cloudpickle.loads(x)",
    "import pyarrow.parquet as pq; pq.read_table(f)", "import pandas as pd; pd.read_parquet(f)"])
def test_planted_calls_are_found(planted):
    assert len(dangers(planted)) == 1


def test_safe_calls_are_not_found():
    assert not dangers("import torch, yaml, subprocess, json\nmodel.eval()\ntorch.load(f, weights_only=True)\n"
                       "yaml.safe_load(f)\nsubprocess.run(['a'], shell=False)\njson.load(f)\nre.compile(x)")


# --- names and secrets in the configuration ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["../x", "a/b", "..", ".hidden", "-rf", "a\\b", "a?region=x", "a#b", "a%2fb", "a\nb",
                                  "a:b", "$HOME", "s3://b", " a", "{{7*7}}", "*"])
def test_names_that_become_paths_are_plain(name, tmp_path):
    for key in ("name", "prepared", "train.from_tune"):
        with pytest.raises(config.ConfigError, match="plain name"):
            options.load([f"--{key}={name}"])
    for key in ("data: {sources: ", "evaluate: {also: "):
        file = tmp_path / "c.yaml"
        file.write_text(key + json.dumps([{"kind": "jaffe", "root": "x", "name": name}]) + "}")
        with pytest.raises(config.ConfigError, match="plain name"):
            options.load(["--config", str(file)])


SECRETS = ["s3://AKIA7:TOPSECRET@bucket/x", "s3://AKIA7:TOP/SECRET@bucket/x", "https://TOPSECRET@host/x",
           "s3://bucket/x?secret_key=TOPSECRET", "https://h/x?a=b&X-Amz-Signature=TOPSECRET", "S3://a:TOPSECRET@b"]


@pytest.mark.parametrize("uri", SECRETS)
@pytest.mark.parametrize("key", ["storage", "train.weights", "train.mlflow", "evaluate.checkpoint", "data.root"])
def test_credentials_in_a_uri_are_refused_and_not_repeated(key, uri):
    with pytest.raises(config.ConfigError, match=f"{key}: carries credentials") as error:
        options.load([f"--{key}", uri, "--train.epochs", "0", "--name", "a/b"])
    assert "SECRET" not in str(error.value) and "TOP" not in str(error.value) and "AKIA7" not in str(error.value)
    assert ("MLFLOW_TRACKING" if key == "train.mlflow" else "AWS environment") in str(error.value)


@pytest.mark.parametrize("uri", ["s3://bucket/x", "/home/a@b/c:d@e", "file:///home/a@b/c"])
def test_uris_without_credentials_are_accepted(uri):
    assert options.load(["--storage", uri]).storage == uri
    assert options.load(["--train.mlflow", "http://host:5000/x"]).train.mlflow == "http://host:5000/x"


@pytest.mark.parametrize(("uri", "wrong"), [
    ("http://host:5000/x", "unknown kind"), ("gs://bucket/x", "unknown kind"), ("file://host/x", "unknown kind"),
    ("s3://", "no bucket"), ("s3:///x", "no bucket"), ("s3://bucket/x?endpoint_override=http://h:9", "environment")])
def test_storage_that_no_job_could_use_is_refused_at_once(uri, wrong):
    with pytest.raises(config.ConfigError, match=f"storage: .*{wrong}"):
        options.load(["--storage", uri])


def test_secrets_of_the_environment_are_in_nothing_that_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "TOPSECRET")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "TOPSECRET")
    loaded = config.to_dict(options.load(["--storage", "s3://bucket/x", "--data.root", "$AWS_SECRET_ACCESS_KEY"]))
    storage.write_json(str(tmp_path / "run.json"), {"id": "id"})
    tracking.log(str(tmp_path), {"epoch": 0, "train_loss": 1.0})
    checkpoints.save(str(tmp_path), "resnet18", torch.nn.Linear(1, 1), {"progress": {}}, {"config": loaded})
    written = [p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()]
    assert len(written) == 6 and not any(b"TOPSECRET" in content for content in written)
