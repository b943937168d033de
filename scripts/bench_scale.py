"""What large sets cost the process that a job waits for: `python scripts/bench_scale.py [--rows 10000 100000 1000000]`.

A prepared set of so many images is drawn: index rows, hashes and thumbnails, and as the crop of each image the same
tiny PNG. Images lie in a folder a class, people have 20 of them each, and three in a hundred are copies of others. Of
the pairs of hashes as many differ in at most 8 bits as among the faces of 2,255 photographs. Then each step runs in a
process of its own, for its seconds and its peak memory, which includes what it read before:

- index: `prepare.prepare` of a set whose crops are all made, which does the next three too;
- near-duplicates: `duplicates.clusters`; split: `splits.assign` by subject; audit: `prepare.audit_again`;
- page: `prepared_page.write`;
- epoch order: what each step of an epoch sees and which tasks of a stream read it, for one worker;
- metrics: `metrics.evaluate` and `metrics.by_group`, with every image in the test split.

The last line is JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from fer_ray import storage
from fer_ray.config import Config
from fer_ray.data import crops, duplicates, manifest, prepare, prepared_set, provenance, splits
from fer_ray.data.manifest import EXPRESSIONS
from fer_ray.model import metrics
from fer_ray.report import prepared_page
from fer_ray.train import stream

PEOPLE_IMAGES = 20
COPIES = 0.03  # of these a third are the same crop, the others differ in up to 3 bits of each hash
SCENES = 4096  # different thumbnails; only those of near hashes are ever held against each other


def draw(folder: str, rows: int) -> None:
    """Write the manifest, and a prepared set that holds the crops but no index."""
    images = pa.table({
        "image": [f"/faces/{EXPRESSIONS[i * 8 // rows]}/{i:07d}.jpg" for i in range(rows)],
        "expression": [EXPRESSIONS[i * 8 // rows] for i in range(rows)],
        "subject": np.char.add("p", (np.random.default_rng(0).permutation(rows) // PEOPLE_IMAGES).astype(str)),
        "file_size": np.full(rows, 9000), "file_mtime_ns": np.arange(rows)})
    pq.write_table(images, f"{folder}/images.parquet")
    config = config_of(folder)
    uri = prepared_set.uri_of(config)
    looks = draw_looks(rows)
    wanted = provenance.deal(manifest_of(images.to_pylist()).rows)
    wanted["content"] = [f"{row:064x}" for row in wanted["row"]]
    schema = provenance.schema(crops.made_with(config.faces))
    for _, of_part in wanted.groupby("number"):
        prepared_set.write_part(uri, int(of_part["number"].iloc[0]), part_of(of_part, looks, schema))
    files = prepared_set.write_table(uri, "contents", provenance.contents_of(wanted))
    storage.write_json(f"{uri}/prepared.json", {
        "schema_version": prepared_set.SCHEMA_VERSION, "request": "", "fingerprint": "", "files": files, "counts": {},
        "config": {}})


def config_of(folder: str) -> Config:
    """Of all steps."""
    return Config(name="set", storage=folder)


def manifest_of(rows: list[dict]) -> manifest.Manifest:
    """As a layout's reader makes it of a dict for each image."""
    found = manifest.build(rows, [], "drawn rows", "drawn rows")
    ledger = {"files": len(rows), "images": len(rows), "unused": {}, "other": {}}
    return dataclasses.replace(found, ledger=ledger | dict.fromkeys(
        ("rejected", "read", "pictures", "absent", "junk"), 0))


def draw_looks(rows: int) -> pd.DataFrame:
    """What near-duplicates are found by: `scene` (number of the thumbnail), `digest`, and the columns `HASHES`."""
    rng = np.random.default_rng(1)
    original = np.arange(rows)
    copied = rng.random(rows) < COPIES
    original[copied] = rng.integers(0, rows, copied.sum())
    chances = np.where(np.arange(64) % 2, 0.5, 0.2)  # of each bit to be set
    hashes = np.zeros((rows, len(duplicates.HASHES)), np.uint64)
    for bit, chance in enumerate(chances):
        hashes |= (rng.random(hashes.shape) < chance).astype(np.uint64) << np.uint64(bit)
    hashes = hashes[original]
    changed = copied & (rng.random(rows) < 2 / 3)
    for _ in range(3):
        flips = np.uint64(1) << rng.integers(0, 64, hashes.shape, dtype=np.uint64)
        hashes[changed] ^= flips[changed]
    number = np.where(changed, np.arange(rows), original)
    return pd.DataFrame(hashes, columns=duplicates.HASHES).assign(scene=original % SCENES, digest=number)


def part_of(images: pd.DataFrame, looks: pd.DataFrame, schema: pa.Schema) -> pa.Table:
    """A part of the prepared set with these images of `provenance.deal`."""
    rng = np.random.default_rng(2)
    scenes = rng.integers(30, 220, (SCENES, duplicates.THUMBNAIL_SIDE**2), dtype=np.uint8)
    looks = looks.iloc[images["row"]]
    crop = cv2.imencode(".png", np.full((256, 256), 128, np.uint8))[1].tobytes()
    number = len(images)
    grain = rng.integers(0, 2, (number, duplicates.THUMBNAIL_SIDE**2), dtype=np.uint8)
    thumbnails = [thumbnail.tobytes() for thumbnail in scenes[looks["scene"]] + grain]
    values = {"content": images["content"], "cropped": [False] * number, "face_found": [True] * number,
              "several": [False] * number,
              "width": [256] * number, "height": [256] * number, "channels": [1] * number, "chroma": [0.0] * number,
              "brightness": rng.normal(128, 20, number), "contrast": rng.normal(50, 5, number),
              "format": ["JPEG"] * number, "search": ["found"] * number, "box": [[9, 9, 200, 200]] * number,
              "digest": [f"{digest:032x}" for digest in looks["digest"]], "crop": [crop] * number,
              **{name: looks[name] for name in duplicates.HASHES}, **dict.fromkeys(duplicates.THUMBNAILS, thumbnails)}
    return pa.table([pa.array(values.get(field.name, [None] * number), field.type) for field in schema], schema)


def measure_index(folder: str) -> float:
    """Seconds of `prepare.prepare`, the manifest made from its rows included."""
    rows = manifest.read_parquet(f"{folder}/images.parquet").to_pylist()
    start = time.perf_counter()
    prepare.prepare(config_of(folder), manifest_of(rows))
    return time.perf_counter() - start


def measure_near_duplicates(folder: str) -> float:
    """Seconds of `duplicates.clusters`."""
    uri = prepared_set.uri_of(config_of(folder))
    index = prepared_set.read_index(uri)
    thumbnails = prepared_set.read_thumbnails(uri, index)
    start = time.perf_counter()
    found = duplicates.clusters(index, thumbnails)
    seconds = time.perf_counter() - start
    assert 0.7 * COPIES < 1 - (found.max() + 1) / len(index) < 1.2 * COPIES, found.max()
    return seconds


def measure_split(folder: str) -> float:
    """Seconds of `splits.assign`."""
    index = prepared_set.read_index(prepared_set.uri_of(config_of(folder)))
    start = time.perf_counter()
    splits.assign(index)
    return time.perf_counter() - start


def measure_audit(folder: str) -> float:
    """Seconds of `prepare.audit_again`, which reads the index and the crops of near-duplicates that disagree."""
    start = time.perf_counter()
    prepare.audit_again(prepared_set.uri_of(config_of(folder)))
    return time.perf_counter() - start


def measure_page(folder: str) -> float:
    """Seconds of `prepared_page.write`."""
    start = time.perf_counter()
    prepared_page.write(prepared_set.uri_of(config_of(folder)), "set")
    return time.perf_counter() - start


def measure_epoch_order(folder: str) -> float:
    """Seconds from the index to what each step sees and which tasks read it."""
    uri = prepared_set.uri_of(config_of(folder))
    index = prepared_set.read_index(uri)
    index = index[index["split"] == "train"]
    start = time.perf_counter()
    source = stream.Streamed(uri, index, "paper", seed=0, rank=0, world=1)
    stream.by_shard(source.order.shards, np.concatenate(source.order.train_steps(0, 32, 0, "natural")))
    return time.perf_counter() - start


def measure_metrics(folder: str) -> float:
    """Seconds of `metrics.evaluate` and `metrics.by_group` of random predictions, by image format and by class."""
    index = prepared_set.read_index(prepared_set.uri_of(config_of(folder)))
    probabilities = np.random.default_rng(0).dirichlet(np.ones(8), len(index))
    labels, subjects = pd.factorize(index["expression"], sort=True)[0], index["subject"].tolist()
    start = time.perf_counter()
    metrics.evaluate(probabilities, labels, subjects)
    for column in ("format", "expression"):
        metrics.by_group(probabilities, labels, subjects, index[column].tolist())
    return time.perf_counter() - start


STEPS = {"index": measure_index, "near-duplicates": measure_near_duplicates, "split": measure_split,
         "audit": measure_audit, "page": measure_page, "epoch order": measure_epoch_order, "metrics": measure_metrics}


def peak_gb() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def in_its_own_process(step: str, folder: str, rows: int) -> dict:
    """Run `step` by this script; its seconds and its peak memory."""
    done = subprocess.run([sys.executable, __file__, "--only", step, "--folder", folder, "--rows", str(rows)],
                          stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Print a line a step and, last, all of them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--folder", help="where the sets are drawn, 2.5 KB an image; default: a temporary one")
    parser.add_argument("--only", choices=["draw", *STEPS], help=argparse.SUPPRESS)  # what this script gives to itself
    options = parser.parse_args()
    if options.only:
        start = time.perf_counter()
        if options.only == "draw":
            draw(options.folder, options.rows[0])
        seconds = time.perf_counter() - start if options.only == "draw" else STEPS[options.only](options.folder)
        print(json.dumps({"seconds": round(seconds, 3), "peak_gb": round(peak_gb(), 2)}))
        return
    results: dict[int, dict] = {}
    for rows in options.rows:
        with tempfile.TemporaryDirectory(prefix="bench_scale_", dir=options.folder) as folder:
            in_its_own_process("draw", folder, rows)
            results[rows] = {}
            for step in STEPS:
                results[rows][step] = in_its_own_process(step, folder, rows)
                print(f"{rows:9,} rows  {step:16} {results[rows][step]}", flush=True)
    print(json.dumps({"machine": platform.processor() or platform.machine(), "cores": os.cpu_count(),
                      "date": date.today().isoformat(), **{str(rows): found for rows, found in results.items()}}))


if __name__ == "__main__":
    main()
