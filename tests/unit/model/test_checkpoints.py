"""Checkpoints on disk: whole, damaged, edited, half written, and behind a storage that does not answer."""

import json
import os
import re
import stat

import pytest
import s3
import torch
from disks import full_disk

import fer_ray.s3
from fer_ray import storage
from fer_ray.config import Config, to_dict
from fer_ray.model import backbones, checkpoints
from fer_ray.model.checkpoints import CheckpointError

TINY = "tiny"


DESCRIPTION = {"metrics": {"val_balanced_accuracy": 0.5}, "at_end_of_epoch": True, "config": to_dict(Config()),
               "progress": {"epoch": 1, "step": 0}}


def save(folder, epoch: int = 1, at_end: bool = True) -> torch.nn.Module:
    """A checkpoint whose validation score grows with the epoch."""
    torch.manual_seed(epoch)
    model = backbones.build(TINY).eval()
    checkpoints.save(str(folder), TINY, model, {"optimizer": {}, "progress": {"epoch": epoch}},
                     DESCRIPTION | {"metrics": {"val_balanced_accuracy": 0.1 * epoch} if at_end else {},
                                    "at_end_of_epoch": at_end, "progress": {"epoch": epoch, "step": 0}})
    return model


@pytest.fixture
def run(tmp_path):
    """A run with checkpoints of three epochs; the third is in the middle of its epoch."""
    for epoch in (1, 2, 3):  # names say nothing of the order
        save(tmp_path / f"checkpoint_{9 - epoch}", epoch, at_end=epoch < 3)
    return tmp_path


def edit(folder, **values) -> None:
    file = folder / "model.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_what_is_saved_comes_back(tmp_path):
    model = save(tmp_path / "c", epoch=3)
    loaded, description = checkpoints.load_model(str(tmp_path / "c"))
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(loaded(images), model(images)) and description["backbone"] == TINY
    assert checkpoints.load_train_state(str(tmp_path / "c"))["progress"] == {"epoch": 3}


def test_the_older_checkpoint_serves_where_the_newest_is_damaged(run):
    assert checkpoints.find_latest(str(run)).endswith("checkpoint_6")
    assert checkpoints.find_best(str(run)).endswith("checkpoint_7")
    for victim, name in (("checkpoint_6", "train_state.pt"), ("checkpoint_7", "model.safetensors")):
        file = run / victim / name
        file.write_bytes(file.read_bytes()[:1000])
    assert checkpoints.find_latest(str(run)).endswith("checkpoint_8")
    assert checkpoints.find_best(str(run)).endswith("checkpoint_8")


def test_a_run_without_a_whole_checkpoint(run):
    assert checkpoints.find_latest(str(run / "nowhere")) is None
    with pytest.raises(CheckpointError, match="no complete checkpoint; run jobs/train.py"):
        checkpoints.find_best(str(run / "nowhere"))
    for folder in run.iterdir():
        (folder / "model.safetensors").unlink()
    assert checkpoints.find_latest(str(run)) is None
    with pytest.raises(CheckpointError, match="no complete checkpoint, and 2 that are damaged"):
        checkpoints.find_best(str(run))


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"{}", b"\xff\xfe", b'{"progress": 1}'])
def test_a_description_that_is_not_whole_is_passed_over_and_named(run, content):
    """The process died while it wrote, or the disk lost something."""
    file = run / "checkpoint_6/model.json"
    file.unlink() if content is None else file.write_bytes(content)
    assert checkpoints.find_latest(str(run)).endswith("checkpoint_7")
    with pytest.raises(CheckpointError, match=f"not a checkpoint .*{file}.*jobs/train.py with the same") as error:
        checkpoints.describe(str(file.parent))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("values", [{"progress": {}}, {"metrics": {}}, {"metrics": {"val_balanced_accuracy": "high"}},
                                    {"config": {}}])
def test_a_description_without_its_numbers_or_options_is_damaged(run, values):
    edit(run / "checkpoint_7", **values)
    with pytest.raises(CheckpointError, match="checkpoint_7.*(progress or metrics lack a number|config is not whole)"):
        checkpoints.describe(str(run / "checkpoint_7"))


@pytest.mark.parametrize(("values", "words"), [
    ({"classes": ["anger", "contempt"]}, r"classes is \['anger', 'contempt'\], but"),
    ({"classes": None}, "classes is None, but"),
    ({"input_size": 448}, "input_size is 448, but .* 224; was the file edited"),
    ({"mean": [0.5, 0.5, 0.5]}, r"mean is \[0.5, 0.5, 0.5\], but"),
    ({"std": [0.5, 0.5, 0.5]}, r"std is \[0.5, 0.5, 0.5\], but"),
    ({"backbone": "inception"}, "unknown backbone 'inception'; known: alexnet, vgg19, resnet152.*, timm:NAME")])
def test_an_edited_description_is_refused_and_not_passed_over(run, values, words):
    edit(run / "checkpoint_7", **values)
    for use, target in ((checkpoints.describe, run / "checkpoint_7"), (checkpoints.load_model, run / "checkpoint_7"),
                        (checkpoints.find_best, run), (checkpoints.find_latest, run)):
        with pytest.raises(CheckpointError, match=words) as error:
            use(str(target))
        assert "checkpoint_7/model.json: " in str(error.value) and "\n" not in str(error.value)


def test_weights_of_another_backbone_than_the_description_says(tmp_path):
    save(tmp_path / "c")
    edit(tmp_path / "c", backbone="resnet18")
    with pytest.raises(CheckpointError, match="model.safetensors: does not fit the network: .*missing.*resnet18"):
        checkpoints.load_model(str(tmp_path / "c"))


def test_a_damaged_file_is_named_with_what_makes_it_again(tmp_path):
    save(tmp_path / "c")
    for name, use in (("model.safetensors", checkpoints.load_model), ("train_state.pt", checkpoints.load_train_state)):
        file = tmp_path / "c" / name
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{file}: sha256 differs from model.json.*jobs/train.py"):
            use(str(tmp_path / "c"))
        file.unlink()
        with pytest.raises(CheckpointError, match=f"{file}: is missing; jobs/train.py"):
            use(str(tmp_path / "c"))


def test_files_that_verify_but_hold_something_else(tmp_path):
    save(tmp_path / "c")
    (tmp_path / "c/model.safetensors").write_bytes(b"nothing")
    torch.save([1], tmp_path / "c/train_state.pt")
    edit(tmp_path / "c", sha256=storage.sha256(str(tmp_path / "c/model.safetensors")),
         train_state_sha256=storage.sha256(str(tmp_path / "c/train_state.pt")))
    with pytest.raises(CheckpointError, match="model.safetensors: not in the format of safetensors"):
        checkpoints.load_model(str(tmp_path / "c"))
    with pytest.raises(CheckpointError, match="train_state.pt: does not hold optimizer and progress"):
        checkpoints.load_train_state(str(tmp_path / "c"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path, value):
    model = backbones.build(TINY)
    with torch.no_grad():
        backbones.head(model, TINY).bias[3] = value
    checkpoints.save(str(tmp_path), TINY, model, {}, DESCRIPTION)
    with pytest.raises(CheckpointError, match="model.safetensors: 1 of .* hold NaN .* the first is 'fc.bias'"):
        checkpoints.load_model(str(tmp_path))


def test_a_path_that_is_no_folder_of_a_checkpoint(tmp_path):
    (tmp_path / "file.pt").write_bytes(b"")
    with pytest.raises(storage.StorageError, match="file.pt/model.json: Not a directory"):
        checkpoints.describe(str(tmp_path / "file.pt"))
    with pytest.raises(CheckpointError, match=f"{tmp_path}/gone: not a checkpoint"):
        checkpoints.describe(str(tmp_path / "gone"))


@pytest.fixture
def bucket(monkeypatch):
    """Port of a real S3 server that this process uses as `s3://bucket`, and a `Hold` that has it refuse requests."""
    monkeypatch.setattr(fer_ray.s3, "ATTEMPTS", 1)
    with s3.server() as port, s3.faulty(port, fraction=0) as (proxy, _, hold), s3.in_this_process(proxy):
        yield hold


@pytest.mark.parametrize(("name", "users"), [
    ("model.json", ["find_latest", "find_best", "describe", "load_weights", "load_train_state"]),
    ("model.safetensors", ["find_latest", "find_best", "load_weights"]),
    ("train_state.pt", ["find_latest", "load_train_state"])])
def test_a_server_that_does_not_answer_is_not_taken_for_a_missing_file(tmp_path, bucket, name, users):
    """A run whose server was away for a while began again at epoch 0."""
    save(tmp_path / "c")
    run = "s3://bucket/runs/one"
    checkpoints.move(str(tmp_path / "c"), f"{run}/checkpoint_0001_000000")
    assert checkpoints.find_latest(run)
    bucket.refused = re.compile(f"(GET|HEAD) .*/{name}")  # listings are still answered
    for user in users:
        with pytest.raises(storage.StorageError, match=f"s3://bucket/.*{name}: "):
            getattr(checkpoints, user)(run if user.startswith("find") else f"{run}/checkpoint_0001_000000")


def test_all_files_of_a_checkpoint_can_be_read_by_the_same_people(tmp_path):
    before = os.umask(0o027)
    try:
        save(tmp_path / "local")
        checkpoints.move(str(tmp_path / "local"), str(tmp_path / "runs/c"))
    finally:
        os.umask(before)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "runs/c").iterdir()}
    assert modes == dict.fromkeys(checkpoints.FILES, 0o640)


def test_a_save_to_a_full_disk_is_one_line_and_leaves_no_temporary_folder(tmp_path):
    refused = f"^{tmp_path}/c: the checkpoint cannot be written .*$"
    with full_disk(100_000), pytest.raises(storage.StorageError, match=refused):
        save(tmp_path / "c")
    assert list(tmp_path.iterdir()) == []


def test_a_move_that_fails_leaves_no_temporary_folder(tmp_path):
    save(tmp_path / "c")
    (tmp_path / "runs").write_text("a file where a folder should be")
    with pytest.raises(storage.StorageError, match="runs/c"):
        checkpoints.move(str(tmp_path / "c"), str(tmp_path / "runs/c"))
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_leftovers_are_what_no_run_could_go_on_from(run):
    (run / "checkpoint_1").mkdir()  # half written
    damaged = run / "checkpoint_6/train_state.pt"  # the third epoch's, the most advanced
    damaged.write_bytes(damaged.read_bytes()[:1000])
    checkpoints.remove_leftovers(str(run), checkpoints.find_latest(str(run)))
    assert sorted(folder.name for folder in run.iterdir()) == ["checkpoint_7", "checkpoint_8"]


def test_pruning_keeps_the_latest_and_the_best(run):
    save(run / "checkpoint_5", epoch=4, at_end=False)
    checkpoints.prune(str(run), 2)
    assert sorted(folder.name for folder in run.iterdir()) == ["checkpoint_5", "checkpoint_7"]


def test_of_equal_scores_the_earliest_epoch_is_kept_and_published(run):
    for folder in ("checkpoint_8", "checkpoint_7", "checkpoint_6"):
        edit(run / folder, metrics={"val_balanced_accuracy": 0.5}, at_end_of_epoch=True)
    assert checkpoints.find_best(str(run)).endswith("checkpoint_8")  # of the first epoch
    checkpoints.prune(str(run), 2)
    assert checkpoints.find_best(str(run)).endswith("checkpoint_8")


# --- the temperature -------------------------------------------------------------------------------------


def test_the_temperature_belongs_to_the_weights_it_was_fitted_for(tmp_path):
    folder = str(tmp_path / "c")
    save(tmp_path / "c")
    assert checkpoints.read_temperature(folder) is None
    checkpoints.write_calibration(folder, 1.25, None)
    written = (tmp_path / "c/calibration.json").stat().st_mtime_ns
    checkpoints.write_calibration(folder, 1.25, None)  # the same again writes nothing
    assert (tmp_path / "c/calibration.json").stat().st_mtime_ns == written
    assert checkpoints.read_temperature(folder) == 1.25
    (tmp_path / "c/calibration.json").write_text("{")
    with pytest.raises(storage.DamagedError, match="calibration.json: is damaged.*jobs/evaluate.py"):
        checkpoints.read_temperature(folder)
    checkpoints.write_calibration(folder, 1.0, "validation has 3 images")
    assert checkpoints.read_temperature(folder) is None
    checkpoints.write_calibration(folder, 1.25, None)
    edit(tmp_path / "c", sha256="of other weights")
    assert checkpoints.read_temperature(folder) is None
