"""Which images a step sees: the same for any number of workers, a fair mixture, and each shard read by one worker."""

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from fer_ray import storage
from fer_ray.data import manifest, prepared_set, provenance
from fer_ray.train import order, stream
from fer_ray.train.order import Order


def of(labels: np.ndarray, rank: int, world: int, shards: np.ndarray | None = None) -> Order:
    return Order(labels, np.arange(len(labels)) // 22 if shards is None else shards, 1, rank, world)


@pytest.mark.parametrize("number", [103, 5003])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_workers_share_one_order_without_overlap(number, world):
    labels = np.arange(number) % 8
    alone = of(labels, 0, 1).train_steps(4, 10, 0, "natural")
    shares = [of(labels, rank, world).train_steps(4, 10, 0, "natural") for rank in range(world)]
    for step, whole in enumerate(alone):
        assert sorted(np.concatenate([share[step] for share in shares])) == sorted(whole)
    seen = np.concatenate(alone)
    assert len(np.unique(seen)) == len(seen) == number // 10 * 10
    assert (seen[:50] != np.concatenate(of(labels, 0, 1).train_steps(5, 10, 0, "natural"))[:50]).any()
    later = of(labels, 0, world).train_steps(4, 10, 3, "natural")
    assert all((one == two).all() for one, two in zip(later, shares[0][3:], strict=True))
    evaluated = np.concatenate([np.concatenate(of(labels, rank, world).eval_steps(7)) for rank in range(world)])
    assert sorted(evaluated) == list(range(number))


def test_balanced_sampling_draws_all_classes_alike():
    drawn = np.bincount(np.repeat([0, 3, 5], [900, 90, 10])[of(np.repeat([0, 3, 5], [900, 90, 10]), 0, 1).epoch(
        0, "balanced")], minlength=8)
    assert drawn.sum() == 1000 and all(abs(drawn[k] - 333) < 70 for k in (0, 3, 5))


def dealt(number: int) -> pd.DataFrame:
    """Index rows of images in a folder a class, dealt to parts as `prepare` does; each person is in one split."""
    expressions = manifest.EXPRESSIONS
    names = [f"/d/{expressions[i * 8 // number]}/{i:06d}.png" for i in range(number)]
    columns = {"image": names, "dataset": ["d"] * number, "cropped": [False] * number, "face": [None] * number}
    rows = pa.table(columns | {name: pa.array([0] * number, pa.int64()) for name in manifest.FILE_COLUMNS})
    found = provenance.deal(rows)
    found["expression"] = found["image"].str.split("/").str[2]
    return found[found["row"] % 10 < 7]  # the rest is val and test


def test_a_batch_of_a_set_in_class_folders_is_as_mixed_in_a_stream_as_from_memory():
    index = dealt(20_000)
    labels = index["expression"].map({e: i for i, e in enumerate(manifest.EXPRESSIONS)}).to_numpy()
    shards = order.number_shards(index["number"].to_numpy(), (index["part_row"] // prepared_set.SHARD_ROWS).to_numpy())
    assert index["number"].nunique() > 100

    def classes_per_batch(epoch_order: np.ndarray) -> float:
        return float(np.mean([len(np.unique(labels[epoch_order[i : i + 32]]))
                              for i in range(0, len(epoch_order) - 31, 32)]))

    streamed = np.mean([classes_per_batch(order.shuffle(shards, 0, epoch)) for epoch in range(3)])
    permuted = classes_per_batch(np.random.default_rng(0).permutation(len(labels)))
    assert streamed == pytest.approx(permuted, rel=0.02) and permuted > 7.7


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_each_shard_is_read_by_one_worker_and_crops_wait_for_their_turn_in_bounded_numbers(world):
    index = dealt(20_000)
    shards = order.number_shards(index["number"].to_numpy(), (index["part_row"] // prepared_set.SHARD_ROWS).to_numpy())
    readers = np.zeros(shards.max() + 1, int)
    for rank in range(world):
        steps = Order(np.zeros(len(shards), int), shards, 0, rank, world).train_steps(0, 32, 0, "natural")
        tasks = stream.by_shard(shards, np.concatenate(steps))
        assert sorted(np.concatenate(tasks)) == sorted(np.concatenate(steps))
        readers[np.unique(shards[np.concatenate(tasks)])] += 1
        assert all(len(task) <= stream.TASK_ROWS + prepared_set.SHARD_ROWS for task in tasks)
        # the shards of a task are its own, so that no other task reads them again; columns share that at their border
        reads = sum(len(np.unique(shards[task])) for task in tasks)
        assert 0 <= reads - len(np.unique(shards[np.concatenate(steps)])) < order.COLUMNS
        came = np.empty(len(shards), int)
        came[np.concatenate(tasks)] = np.arange(len(np.concatenate(tasks)))
        held = np.maximum.accumulate(came[np.concatenate(steps)]) - np.arange(len(np.concatenate(steps)))
        assert held.max() < 2 * order.WINDOW_ROWS
    assert (readers > 1).sum() < order.COLUMNS


def test_row_groups_of_a_part_are_read_alone(tmp_path, monkeypatch):
    crops = [np.full((256, 256), i, np.uint8) for i in range(100)]
    encoded = [cv2.imencode(".png", crop)[1].tobytes() for crop in crops]
    table = pa.table({name: encoded if name == "crop" else [None] * 100
                      for name in prepared_set.PART_SCHEMA.names}, schema=prepared_set.PART_SCHEMA)
    name = prepared_set.write_part(str(tmp_path), 0, table)
    positions = np.array([99, 40, 33, 2, 64])
    monkeypatch.delattr(storage, "read_bytes")  # which fetches a whole file
    assert [crop[0, 0] for crop in prepared_set.read_shards_of_part(str(tmp_path), name, positions)] == [99, 40, 33, 2,
                                                                                                        64]
    rows = pd.DataFrame({"image": list("abc"), "part": name, "part_row": [70, 3, 99]})
    corners = prepared_set.read_crops(str(tmp_path), rows, make=lambda crop: crop[:1, :1])
    assert corners == {"a": 70, "b": 3, "c": 99}
    with pytest.raises(prepared_set.DamagedError, match="is damaged"):
        prepared_set.read_shards_of_part(str(tmp_path), name, np.array([100]))
