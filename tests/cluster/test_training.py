"""Training on a real Ray: nothing is lost when processes die, and the result does not depend on it."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from cluster.conftest import command, environment, nodes_of, ray_on, run_job
from safetensors.torch import load, load_file

from fer_ray.config import Config, DataConfig, TrainConfig
from fer_ray.data import prepare, sample
from fer_ray.data.sources import read_manifest
from fer_ray.train import inputs, loop, tracking, training
from fer_ray.train.workers import SingleWorker, TrainingError


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A prepared set of a few people, and the folder it lies in."""
    root = tmp_path_factory.mktemp("tiny")
    sample.write_sample(root / "data", subjects=4, seed=3)
    config = Config(name="set", storage=str(root / "out"), data=DataConfig("auto", str(root / "data")),
                    train=TrainConfig(backbone="timm:test_resnet", weights="none", batch_size=8, lr=0.01, epochs=3))
    with ray_on(2):
        prepare.prepare(config, read_manifest(config.data))
    return config


def options_of(config: Config, name: str, **train) -> list[str]:
    values = {k: v for k, v in vars(config.train).items() if v != getattr(TrainConfig(), k)} | train
    return ["--storage", config.storage, "--prepared", "set", "--name", name,
            *(part for k, v in values.items() for part in (f"--train.{k}", str(v)))]


def run_of(config: Config, name: str) -> Path:
    return Path(config.storage) / "runs" / name


def final_weights(config: Config, name: str) -> dict[str, torch.Tensor]:
    """Weights after the last epoch."""
    from fer_ray.model import checkpoints

    newest = checkpoints.find_latest(str(run_of(config, name)))
    assert checkpoints.describe(newest)["progress"]["epoch"] == config.train.epochs
    return load(Path(newest, "model.safetensors").read_bytes())  # not mapped: a test damages the file


def assert_equal(one: dict, two: dict) -> None:
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def train_with(config: Config, name: str, **changes) -> dict[str, torch.Tensor]:
    """Train in the Ray that is running."""
    changed = dataclasses.replace(config, name=name, prepared="set", train=dataclasses.replace(config.train, **changes))
    training.train(changed, f"{config.storage}/prepared/set")
    return final_weights(changed, name)


def middle_of_epoch(run: Path, epoch: int) -> bool:
    """Whether a checkpoint from within that epoch is there."""
    for file in run.glob("checkpoint_*/model.json"):
        try:
            found = json.loads(file.read_text())
        except ValueError:
            continue
        if found["progress"]["epoch"] == epoch and found["progress"]["step"] > 0:
            return True
    return False


def wait_for(condition, seconds: float = 100) -> None:
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline, "it did not happen in time"
        time.sleep(0.02)


def workers() -> dict[int, int]:
    """Process of each training worker -> its parent, the process of its node."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if re.search(rb"RayTrainWorker|ray::fit_single", process.joinpath("cmdline").read_bytes()):
                found[int(process.name)] = int(process.joinpath("stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    return found


def workers_of(node) -> list[int]:
    raylet = node.all_processes["raylet"][0].process.pid
    return [worker for worker, parent in workers().items() if parent == raylet]


def kill_workers() -> int:
    found = workers()
    for process in found:
        os.kill(process, signal.SIGKILL)
    return len(found)


def damage_newest(run: Path) -> None:
    """Cut the newest checkpoint short."""
    from fer_ray.model import checkpoints

    weights = Path(checkpoints.find_latest(str(run))) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])


# without BatchNorm and dropout, which see one worker's images only
ALIKE = {"backbone": "timm:test_convnext", "lr": 0.05}


@pytest.fixture(scope="module")
def lone(tiny):
    """Weights that a single worker ends with: of the whole network, and of the last layer alone, compiled and not; and
    of a network with BatchNorm that nothing disturbs."""
    with ray_on(2):
        return {"undisturbed": train_with(tiny, "undisturbed", checkpoint_every_steps=3),
                "whole": train_with(tiny, "whole", **ALIKE), "head": train_with(tiny, "head", layers="head", **ALIKE),
                "compiled": train_with(tiny, "compiled", layers="head", compile=True, **ALIKE)}


def test_compiling_changes_no_more_than_rounding(lone):
    compiled, head = lone["compiled"], lone["head"]
    assert compiled.keys() == head.keys() == lone["whole"].keys()
    assert all(torch.allclose(compiled[name], head[name], atol=1e-5) for name in head)


def test_crops_that_lie_on_the_device_train_alike(tiny, lone, monkeypatch):
    monkeypatch.setattr(loop, "_free_bytes", lambda device: 2**40)  # as a GPU has; here the device is the CPU
    config = dataclasses.replace(tiny, name="resident", train=dataclasses.replace(tiny.train, **ALIKE))
    prepared = f"{tiny.storage}/prepared/set"
    with ray_on(2):
        assert training.open_run(config, prepared) is None
        job = training.make_job(config, inputs.load_inputs(config, prepared))
        worker = SingleWorker(job)
        loop.fit(job, worker)
        worker.finish()
    for name, weights in final_weights(config, "resident").items():
        assert torch.allclose(weights, lone["whole"][name], atol=0.03), name  # whole grey levels, enlarged by training
    losses = [[e["train_loss"] for e in tracking.read(str(run_of(tiny, run)))] for run in ("resident", "whole")]
    assert losses[0] == pytest.approx(losses[1], abs=5e-3) and losses[0] != losses[1], losses


def test_a_loss_that_is_not_finite_ends_at_once(tiny):
    with ray_on(2), pytest.raises(TrainingError, match="the loss is nan.*train.lr 1e\\+30 is too high"):
        train_with(tiny, "diverged", lr=1e30)


def test_one_and_two_workers_on_one_and_two_nodes_agree(tiny, lone):
    one = lone["whole"]
    with ray_on(2):
        two = train_with(tiny, "two", num_workers=2, **ALIKE)
        damage_newest(run_of(tiny, "two"))
        assert_equal(train_with(tiny, "two", num_workers=2, **ALIKE), two)
        streamed = train_with(tiny, "streamed", cache_gb=0, **ALIKE)
    for name in one:
        assert torch.allclose(one[name], two[name], atol=2e-4), name
    # a set of a single part has one order, so that making the pixels in Ray Data tasks changes nothing at all
    assert_equal(streamed, one)

    # a worker on each of two nodes, one of which is lost in the second epoch; a third is there instead
    with nodes_of(0, 1, 1, 1) as (cluster, others), ThreadPoolExecutor(1) as aside:
        run, used = run_of(tiny, "nodes"), []

        def lose_one() -> None:
            wait_for(lambda: middle_of_epoch(run, 1))
            used.extend(node for node in others if workers_of(node))
            cluster.remove_node(used[0], allow_graceful=False)

        lost = aside.submit(lose_one)
        # streamed, by tasks that find no CPU which no worker holds
        nodes = train_with(tiny, "nodes", num_workers=2, min_workers=2, cache_gb=0, checkpoint_every_steps=3, **ALIKE)
        lost.result()
    assert len(used) == 2
    assert_equal(nodes, two)


def test_elastic_training_goes_on_with_the_workers_that_are_left(tiny, lone, monkeypatch):
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "8")  # then it tries fewer; a minute by itself
    with nodes_of(0, 1, 1) as (cluster, others), ThreadPoolExecutor(1) as aside:
        def lose_one() -> None:
            wait_for(lambda: middle_of_epoch(run_of(tiny, "elastic"), 1))
            cluster.remove_node(others[0], allow_graceful=False)

        lost = aside.submit(lose_one)
        elastic = train_with(tiny, "elastic", num_workers=2, min_workers=1, checkpoint_every_steps=3, **ALIKE)
        lost.result()
    lines = tracking.read(str(run_of(tiny, "elastic")))
    # the epoch in which the node is lost may end before its loss is seen
    assert [e["epoch"] for e in lines] == [0, 1, 2] and [lines[0]["workers"], lines[2]["workers"]] == [2, 1]
    for name, weights in lone["whole"].items():
        assert torch.allclose(elastic[name], weights, atol=2e-4), name


def test_worker_killed_driver_killed_and_checkpoint_truncated_end_with_the_same_weights(tiny, lone):
    undisturbed = lone["undisturbed"]
    options = options_of(tiny, "disturbed", checkpoint_every_steps=3)
    run = run_of(tiny, "disturbed")

    def start() -> subprocess.Popen:
        return subprocess.Popen(command("train", *options), env=environment(), start_new_session=True, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    first = start()
    wait_for(lambda: middle_of_epoch(run, 0))
    assert kill_workers() >= 1  # Ray starts another one
    wait_for(lambda: middle_of_epoch(run, 1))
    assert first.poll() is None
    os.killpg(first.pid, signal.SIGKILL)  # the driver; the same command goes on
    first.communicate()
    time.sleep(2)
    again = start()
    said = again.communicate(timeout=200)[0]
    assert again.returncode == 0, said
    assert_equal(final_weights(tiny, "disturbed"), undisturbed)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1, 2] and len({line["run"] for line in lines}) == 1
    assert list((run / "tensorboard" / lines[0]["run"]).iterdir())

    def cut_log() -> None:
        """As a death between a checkpoint and the line of its epoch leaves it."""
        (run / "metrics.jsonl").write_text(json.dumps(lines[0]) + "\n")

    cut_log()
    with ray_on(2):
        train_with(tiny, "disturbed", checkpoint_every_steps=3)
        assert tracking.read(str(run)) == lines
        cut_log()
        damage_newest(run)
        assert_equal(train_with(tiny, "disturbed", checkpoint_every_steps=3), undisturbed)
        assert [e["train_loss"] for e in tracking.read(str(run))] == [e["train_loss"] for e in lines]


def test_the_papers_three_backbones_run_an_epoch_from_torchvision_files_and_are_compared(tiny, tmp_path):
    import torchvision

    weights = tmp_path / "hub/checkpoints"  # torch's own cache, as a download leaves it
    weights.mkdir(parents=True)
    few = tmp_path / "few"
    sample.write_sample(few, subjects=3, seed=1)
    for image in few.glob("jaffe/*2.*.tiff"):  # one of each expression is enough for networks of this size
        image.unlink()
    options = ["--data.root", str(few / "jaffe"), "--storage", str(tmp_path / "out"), "--name", "three",
               "--train.epochs", "1", "--train.batch_size", "7", "--train.weights", "none"]
    done = run_job("compare", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    compared = json.loads((tmp_path / "out/compare/three/compare.json").read_text())["runs"]
    assert [r["backbone"] for r in compared] == ["alexnet", "vgg19", "resnet152"]
    assert [round(r["parameters_m"]) for r in compared] == [57, 140, 58]
    assert all(r["epochs"] == 1 and Path(r["result"]).is_file() for r in compared)
    torch.manual_seed(0)
    file = tmp_path / "alexnet.pth"
    torch.save(torchvision.models.alexnet(weights=None).state_dict(), file)
    done = run_job("train", *options[2:], "--prepared", "three", "--name", "file", "--train.weights", str(file),
                   "--train.backbone", "alexnet", "--train.layers", "head", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    kept = load_file(next((tmp_path / "out/runs/file").glob("checkpoint_*/model.safetensors")))
    assert torch.equal(kept["features.0.weight"], torch.load(file, weights_only=True)["features.0.weight"])


def test_what_a_training_lacks_is_told_before_the_work(tiny, tmp_path):
    for lacking, said in (
        (["--train.num_workers", "640", "--train.batch_size", "640"], "640 workers need at least half a CPU each"),
        (["--train.weights", "/nowhere.pth"], "/nowhere.pth: neither 'imagenet' nor 'none'"),
    ):
        done = run_job("pipeline", "--data.root", tiny.data.root, "--storage", str(tmp_path / "out"), *lacking,
                       cwd=tmp_path)
        assert done.returncode == 1 and not (tmp_path / "out").exists()
        assert re.fullmatch(f"error: {lacking[0][2:]}:? .*{re.escape(said)}.*\n", done.stderr), done.stderr
