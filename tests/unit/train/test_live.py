"""What is shown of runs while their workers train."""

import pytest

from fer_ray import storage
from fer_ray.config import TrainConfig
from fer_ray.errors import StorageError
from fer_ray.train import live, tracking

NUMBERS = {"train_loss": 2.0, "val_loss": 1.5, "val_balanced_accuracy": 0.5, "val_chance": 0.125, "images_per_s": 17.6}
LINE = "epoch   1/3  loss 2.000  val loss 1.500  val balanced accuracy 0.500 (chance 0.125)  18 images/s"


@pytest.fixture
def runs(tmp_path, monkeypatch) -> dict[str, str]:
    """Two runs that have begun; no Ray tells how far they are."""
    monkeypatch.setattr(live, "forget_tick", lambda run: None)
    monkeypatch.setattr(live, "read_tick", lambda run: None)
    monkeypatch.setattr(live, "TICK_S", 0.01)
    for name in ("a", "b"):
        storage.write_json(str(tmp_path / name / "run.json"), {"id": name})
    return {name: str(tmp_path / name) for name in ("a", "b")}


def test_each_epoch_is_told_once_and_those_of_before_are_counted(runs, capsys):
    tracking.log(runs["b"], {"epoch": 0, **NUMBERS})
    with live.show(runs, TrainConfig(epochs=3)):
        tracking.log(runs["a"], {"epoch": 0, **NUMBERS})
    assert capsys.readouterr().out.splitlines() == ["b: resuming after epoch 1", f"a  {LINE}"]


def test_a_single_run_shows_how_far_its_epoch_is(runs, monkeypatch, capsys):
    bars = []

    class Bar:
        def __init__(self, work, total, done):
            self.work = work
            bars.append([work, total, done])

        def __exit__(self, *error):
            bars[-1].append("closed")

        def advance_to(self, done):
            bars[-1].append(done)

    monkeypatch.setattr("fer_ray.progress.Progress", Bar)
    monkeypatch.setattr(live, "read_plan", lambda run: (40, 170.0))
    display = live._Display({"": runs["a"]}, TrainConfig(epochs=3))
    for tick in ((0, 8, 100), (0, 40, 100)):
        monkeypatch.setattr(live, "read_tick", lambda run, tick=tick: tick)
        display.update()
    tracking.log(runs["a"], {"epoch": 0, **NUMBERS})
    display.update()  # the last tick is of an epoch that has ended
    monkeypatch.setattr(live, "read_tick", lambda run: (1, 16, 100))
    display.update()
    display.close()
    assert bars == [["epoch 1/3", 100, 8, 8, 40, "closed"], ["epoch 2/3", 100, 16, 16, "closed"]]
    assert capsys.readouterr().out.count("40 steps an epoch; with at most 3 epochs about 3 min") == 1


def test_a_storage_that_does_not_answer_ends_no_display(runs, monkeypatch, capsys):
    reads = []

    def away(run: str) -> list[dict]:
        reads.append(run)
        if len(reads) > 2:  # not at the start
            raise StorageError("no answer")
        return []

    monkeypatch.setattr(tracking, "read", away)
    with live.show(runs, TrainConfig()):
        while len(reads) < 6:
            pass
    assert capsys.readouterr() == ("", "")


def test_a_worker_tells_now_and_then_and_only_the_first_does(monkeypatch):
    told = []
    monkeypatch.setattr("ray.experimental.internal_kv._internal_kv_initialized", lambda: True)
    monkeypatch.setattr("ray.experimental.internal_kv._internal_kv_put",
                        lambda key, value, namespace: told.append((key, value)))
    for rank in (1, 0):
        ticker = live.Ticker("run", rank)
        for step in range(1000):
            ticker.tick(0, step, 1000)
    assert told == [("live:run", "[0, 0, 1000]")]
