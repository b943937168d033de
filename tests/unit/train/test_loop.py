"""The training loop without Ray: it goes on where it was, keeps what it should and leaves nothing else."""

import dataclasses
import json
import multiprocessing
import re
from pathlib import Path

import numpy as np
import pytest
import s3 as server
import torch
import two_workers
from safetensors.torch import load_file

from fer_ray import s3, scratch, storage
from fer_ray.config import Config, TrainConfig
from fer_ray.errors import StorageError
from fer_ray.model import checkpoints, start_weights
from fer_ray.train import batches, loop, tracking
from fer_ray.train.job import SplitInput, TrainingInput, TrainJob
from fer_ray.train.workers import SingleWorker


class Killed(BaseException):
    """Ends the loop as the death of its process does."""


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch) -> Path:
    """The folder for temporary files, of each test alone: a Ray that runs beside has files in that of the process."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(scratch, "folder", lambda: str(folder))
    return folder


@pytest.fixture(autouse=True)
def references_are_values(monkeypatch):
    """The loop asks Ray for nothing but the values of references."""
    monkeypatch.setattr("ray.get", lambda reference: reference)


@pytest.fixture
def job(tmp_path) -> TrainJob:
    """Two epochs of three steps, with a checkpoint after the second step and at the end of each."""
    rng = np.random.default_rng(0)

    def split(number: int) -> SplitInput:
        crops = [rng.integers(0, 256, (256, 256), dtype=np.uint8) for _ in range(number)]
        rows = np.arange(number)
        return SplitInput("cached", [batches.Crops(crops, rows % 8, rows, np.zeros(number, int))])

    settings = TrainConfig(backbone="timm:test_resnet", weights="none", batch_size=4, epochs=2, lr=0.01,
                           checkpoint_every_steps=2, device="cpu", num_workers=1)
    state = start_weights.load(settings)
    loaded = TrainingInput("fingerprint", state, None, split(12), split(8))
    storage.write_json(str(tmp_path / "runs/one/run.json"), {"id": "id1", "values": {}})
    return TrainJob(Config(name="one", storage=str(tmp_path), train=settings), loaded, threads=1)


def renamed(job: TrainJob, name: str, **changes) -> TrainJob:
    """The same job as another run."""
    config = dataclasses.replace(job.config, name=name, train=dataclasses.replace(job.config.train, **changes))
    storage.write_json(f"{config.storage}/runs/{name}/run.json", {"id": name, "values": {}})
    return dataclasses.replace(job, config=config)


def train(job: TrainJob, die_at: int | None = None) -> None:
    """Run the loop; `die_at`: the number of the report that the process does not survive."""
    reports = 0

    class Worker(SingleWorker):
        def report(self, numbers, checkpoint):
            nonlocal reports
            reports += 1
            super().report(numbers, checkpoint)
            if reports == die_at:
                self.finish()
                raise Killed

    worker = Worker(job)
    loop.fit(job, worker)
    worker.finish()


def weights(job: TrainJob) -> dict[str, torch.Tensor]:
    newest = checkpoints.find_latest(job.run)
    assert newest
    return load_file(Path(newest) / "model.safetensors")


def names(job: TrainJob) -> list[str]:
    return [name for name in storage.list_dirs(job.run) if name.startswith("checkpoint_")]


def assert_equal(one: dict, two: dict) -> None:
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_a_run_that_died_after_each_report_ends_with_the_weights_and_files_of_one_that_did_not(job, temporary, average):
    job = renamed(job, "whole", average=average)
    train(job)
    other = renamed(job, "other")
    for _ in range(4):
        half_written = Path(other.run, "checkpoint_0001_000001")  # as a kill during the upload leaves it
        half_written.mkdir()
        (half_written / f"model.safetensors.{'0' * 32}.part").write_bytes(b"half")
        with pytest.raises(Killed):
            train(other, die_at=1)
        assert not half_written.exists()
    train(other)
    assert_equal(weights(other), weights(job))
    assert names(other) == names(job) == ["checkpoint_0001_000000", "checkpoint_0002_000000"]
    losses = [[epoch["train_loss"] for epoch in tracking.read(one.run)] for one in (job, other)]
    assert losses[0] == losses[1] and len(losses[0]) == 2
    assert not list(temporary.iterdir())


def test_a_damaged_checkpoint_does_not_push_out_those_that_are_written_after_it(job):
    train(job)
    damaged = Path(job.run, "checkpoint_0002_000000/model.safetensors")
    damaged.write_bytes(damaged.read_bytes()[:5000])
    with pytest.raises(Killed):
        train(job, die_at=1)  # the one within epoch 2 is kept, though the damaged one is further
    assert names(job) == ["checkpoint_0001_000000", "checkpoint_0001_000002"]


def test_what_cannot_be_stored_ends_the_run_with_the_reason_and_leaves_no_temporary_folder(job, monkeypatch, temporary):
    def refuse(path: str, uri: str) -> None:
        raise StorageError(f"{uri}: No space left on device")

    monkeypatch.setattr(storage, "move", refuse)
    with pytest.raises(StorageError, match="No space left"):
        train(job)
    assert not list(temporary.iterdir()) and names(job) == []


def test_a_checkpoint_that_cannot_be_written_leaves_no_temporary_folder(job, monkeypatch, temporary):
    def refuse(*content) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", refuse)
    with pytest.raises(OSError, match="No space left"):
        train(job)
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_an_outage_of_the_storage_never_begins_the_run_anew(job, monkeypatch, name):
    train(job)
    before = names(job)
    (Path(job.run) / before[-1] / "model.json").touch()
    for function in ("read_bytes", "sha256"):
        real = getattr(storage, function)

        def away(uri: str, real=real):
            if uri.endswith(name):
                raise StorageError(f"{uri}: no answer")
            return real(uri)

        monkeypatch.setattr(storage, function, away)
    with pytest.raises(StorageError, match="no answer"):
        train(job)
    assert names(job) == before


def test_a_bucket_that_is_away_in_mid_run_and_at_its_start_ends_it_with_the_reason_and_it_goes_on(job, monkeypatch):
    train(job)
    monkeypatch.setattr(s3, "ATTEMPTS", 1)  # ten wait for a quarter of a minute and more
    with (server.server() as port, server.faulty(port, fraction=0) as (proxy, _, bucket),
          server.in_this_process(proxy)):
        away = renamed(dataclasses.replace(job, config=dataclasses.replace(job.config, storage="s3://bucket")), "away")
        for refused in ("PUT .*checkpoint_0001_000002", "."):  # within the second epoch, and from the start on
            bucket.refused = re.compile(refused)
            with pytest.raises(StorageError, match="^s3://bucket/runs/away.*SlowDown"):
                train(away)
            bucket.refused = None
            assert names(away) == ["checkpoint_0001_000000"]
        first = tracking.read(away.run)
        train(away)
        assert tracking.read(away.run)[0] == first[0]  # it was not trained again
        assert_equal(checkpoints.load_weights(f"{away.run}/{names(away)[-1]}"), weights(job))


def test_a_loss_that_is_not_finite_ends_the_run_and_says_why(job):
    diverging = renamed(job, "diverging", lr=1e30, checkpoint_every_steps=0)
    train(diverging)
    assert "train.lr 1e+30 is too high" in json.loads(Path(diverging.run, "diverged.json").read_text())["reason"]
    assert names(diverging) == []


def test_crops_that_lie_on_the_device_train_alike(job, monkeypatch, device):
    in_memory = renamed(job, "memory", backbone="timm:test_convnext", checkpoint_every_steps=0, precision="fp32")
    in_memory = dataclasses.replace(in_memory, input=dataclasses.replace(
        in_memory.input, start_state=start_weights.load(in_memory.config.train)))
    train(in_memory)
    monkeypatch.setattr(loop, "_free_bytes", lambda device: 2**40)  # as a GPU has; here the device is the CPU
    on_device = renamed(in_memory, "device", device=device)
    train(on_device)
    one, two = weights(in_memory), weights(on_device)
    assert all(torch.allclose(one[name], two[name], atol=0.03) for name in one)  # whole grey levels, and training
    losses = [[epoch["train_loss"] for epoch in tracking.read(job.run)] for job in (in_memory, on_device)]
    assert losses[0] == pytest.approx(losses[1], abs=5e-3) and losses[0] != losses[1], losses


def test_two_workers_agree_on_the_statistics_of_their_batches_and_read_the_storage_once(job, tmp_path):
    # Not forks of this process: PyTorch refuses a backward pass in them once this one has used several threads for one.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["two_workers", "torch._dynamo", "torchvision", "timm"])
    two = renamed(job, "two", compile=True, micro_batches=2)
    for epochs in (1, 2):  # the second time they go on from a checkpoint
        two = dataclasses.replace(two, config=dataclasses.replace(two.config, train=dataclasses.replace(
            two.config.train, epochs=epochs)))
        folder = tmp_path / str(epochs)
        folder.mkdir()
        both = [processes.Process(target=two_workers.work, args=(rank, two, folder)) for rank in (0, 1)]
        for process in both:
            process.start()
        for process in both:
            process.join(120)
            assert process.exitcode == 0
        one, other = (torch.load(folder / f"{rank}.pt") for rank in (0, 1))
        assert len(one["buffers"]) == len(other["buffers"]) == 1
        assert_equal(one["buffers"][0], other["buffers"][0])
        assert one["compiled"] == ["DistributedDataParallel"]
        assert one["sizes"] == [1] * 3  # 4 images, 2 workers, 2 parts
        saved = weights(two)
        assert all(torch.equal(saved[name], values) for name, values in one["buffers"][0].items())
    assert [epoch["workers"] for epoch in tracking.read(two.run)] == [2, 2]


def test_the_loss_of_training_is_measured_like_that_of_validation():
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 8)
    inputs, labels = torch.randn(6, 4), torch.arange(6)
    plain = torch.nn.functional.cross_entropy(model(inputs), labels, reduction="sum").detach()
    settings = TrainConfig(label_smoothing=0.3)
    step = loop.train_step(model, torch.optim.SGD(model.parameters(), lr=0.1), inputs, labels, torch.arange(8.0), 6,
                           settings, torch.autocast("cpu", enabled=False))
    assert torch.allclose(step, plain)
