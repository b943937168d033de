"""Speed of training, its limit, and the usual loop: `python scripts/bench_train.py --prepared FOLDER`.

Measured on the crops of a prepared set, taking turns:

- job: `jobs/train.py` on a Ray that runs already;
- limit: the same network and optimiser steps on random tensors that lie on the device, before and after the job, with
  the job's settings of the C library's heap;
- reference: the loop of torchvision's classification reference, with JPEG crops in folders, `DataLoader`, the same
  transforms by torchvision, and DDP by torchrun with as many processes.

The last line is JSON with the medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

TRAIN_JOB = Path(__file__).resolve().parent.parent / "jobs/train.py"
CORES = os.cpu_count() or 1
EPOCHS = 3  # the first one warms up and is not counted


def write_subset(prepared: str, folder: str, images: int) -> str:
    """Write a prepared set with so many training images of another (repeated if it has fewer) and few of the rest."""
    import pandas as pd

    from fer_ray.data import prepared_set

    index = prepared_set.read_index(prepared)
    train = index[index["split"] == "train"]
    train = train.sample(images, replace=images > len(train), random_state=0)
    rest = index[index["split"] != "train"].groupby("split").head(32)
    return write_with_index(prepared, folder, pd.concat([train, rest]).sort_values("row"))


def write_with_index(prepared: str, folder: str, index) -> str:
    """Write a prepared set with these index rows of another; its images are hard links to the other's."""
    import pyarrow as pa

    from fer_ray import storage
    from fer_ray.data import prepared_set

    shutil.copytree(prepared, folder, copy_function=_link_or_copy)
    summary = prepared_set.read_summary(folder)
    # files of storage are replaced and not written into, so that the other set's stay as they are
    summary["files"] |= prepared_set.write_table(folder, "index", pa.Table.from_pandas(index, preserve_index=False))
    storage.write_json(f"{folder}/prepared.json", summary)
    return folder


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # the target lies on another disk
        shutil.copy2(source, target)


def measure_job(storage: str, backbone: str, options) -> dict:
    """Train on the prepared set `set`: images a second, share of time spent waiting for data, fixed cost (s)."""
    from fer_ray.train import tracking

    name = f"{backbone}-{time.time_ns()}"
    command = [sys.executable, str(TRAIN_JOB), "--storage", storage, "--prepared", "set", "--name", name,
               "--train.backbone", backbone, "--train.weights", "none", "--train.epochs", str(EPOCHS),
               "--train.batch_size", str(options.batch_size), "--train.num_workers", str(options.num_workers),
               "--train.device", options.device, "--train.feed", options.feed, "--train.precision", options.precision]
    start = time.time()
    done = subprocess.run(command, capture_output=True, text=True)
    end = time.time()
    if done.returncode:
        sys.exit(done.stderr)
    epochs = tracking.read(f"{storage}/runs/{name}")
    shutil.rmtree(f"{storage}/runs/{name}")
    seconds = sum(epoch["train_s"] for epoch in epochs[1:])
    return {"images_per_s": sum(epoch["images"] for epoch in epochs[1:]) / seconds,
            "data_wait": sum(epoch["data_wait_s"] for epoch in epochs[1:]) / seconds,
            "to_loop_s": epochs[0]["loop_begun_at"] - start,
            "to_first_batch_s": epochs[0]["first_batch_at"] - epochs[0]["loop_begun_at"],
            "after_last_epoch_s": end - epochs[-1]["ended_at"]}


def measure_limit(backbone: str, options) -> float:
    """Images a second of the same steps on random tensors that lie on the device."""
    from fer_ray.cli import connection

    return rate_of_process([sys.executable, __file__, "--only", "limit"], backbone, options, connection.HEAP)


def measure_reference(folder: str, backbone: str, options) -> float:
    """Images a second of torchvision's reference loop, started by torchrun."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node",
                str(options.num_workers), __file__, "--only", "reference", "--jpegs", folder]
    threads = max(1, CORES // options.num_workers)
    return rate_of_process(torchrun, backbone, options, {"OMP_NUM_THREADS": str(threads)})


def rate_of_process(command: list[str], backbone: str, options, environment: dict[str, str]) -> float:
    """Images a second that a process of its own measures and prints: this script with `--only`."""
    shared = [f"--{name}={getattr(options, name)}"
              for name in ("batch_size", "num_workers", "device", "precision", "images")]
    done = subprocess.run([*command, "--backbone", backbone, *shared], capture_output=True, text=True,
                          env=os.environ | environment)
    if done.returncode:
        sys.exit(done.stderr)
    return float(done.stdout.strip().splitlines()[-1])


def limit_loop(options) -> None:
    """Print images a second of steps whose images lie ready on the device."""
    import torch

    from fer_ray.config import TrainConfig
    from fer_ray.model import backbones
    from fer_ray.train import loop

    device = torch.device(options.device)
    torch.set_num_threads(max(1, CORES // options.num_workers))
    config = TrainConfig(backbone=options.backbone, batch_size=options.batch_size, precision=options.precision)
    size = config.batch_size
    # ty does not know the overload of Module.to that takes a memory format
    model = backbones.build(config.backbone).to(device, memory_format=torch.channels_last).train()  # ty: ignore
    optimizer = loop.sgd(model, config)
    images = torch.randn(size, 3, 224, 224, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 8, (size,), device=device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=loop.uses_bf16(config, device))
    weights, steps = torch.ones(8, device=device), options.images // size

    def epoch() -> float:
        start = time.perf_counter()
        for _ in range(steps):
            loss = loop.train_step(model, optimizer, images, labels, weights, size, config, autocast)
        loss.item()  # waits until the device has done its steps
        return time.perf_counter() - start

    epoch()
    print(size * steps * (EPOCHS - 1) / sum(epoch() for _ in range(EPOCHS - 1)))


def reference_loop(options) -> None:
    """Print images a second of what references/classification/train.py does, with the paper's transforms."""
    import torch
    import torch.distributed as dist
    from torch.utils.data import DataLoader, DistributedSampler
    from torchvision import datasets, transforms

    from fer_ray.config import TrainConfig
    from fer_ray.model import augment, backbones
    from fer_ray.train import loop

    dist.init_process_group("nccl" if options.device == "cuda" else "gloo")
    device = torch.device(f"cuda:{os.environ['LOCAL_RANK']}" if options.device == "cuda" else "cpu")
    chain = transforms.Compose([
        transforms.RandomCrop(224), transforms.RandomHorizontalFlip(), transforms.RandomRotation(1),
        transforms.RandomGrayscale(0.1), transforms.PILToTensor(), transforms.ConvertImageDtype(torch.float),
        transforms.Normalize(augment.MEAN.tolist(), augment.STD.tolist())])
    data = datasets.ImageFolder(options.jpegs, chain)
    sampler = DistributedSampler(data)
    loader = DataLoader(data, options.batch_size // options.num_workers, sampler=sampler, drop_last=True,
                        num_workers=max(1, CORES // options.num_workers), pin_memory=True)
    model = torch.nn.parallel.DistributedDataParallel(backbones.build(options.backbone).to(device))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    bf16 = loop.uses_bf16(TrainConfig(precision=options.precision), device)
    criterion, seen, seconds = torch.nn.CrossEntropyLoss(), 0, 0.0
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        model.train()
        start = time.perf_counter()
        for images, labels in loader:
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                loss = criterion(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if epoch:
                seen += len(labels) * options.num_workers
        loss.item()
        seconds += (time.perf_counter() - start) if epoch else 0
    if dist.get_rank() == 0:
        print(seen / seconds)
    dist.destroy_process_group()


def export_jpegs(prepared: str, folder: str) -> str:
    """Write the training crops as JPEG files, a folder a class. Returns `folder`."""
    import cv2

    from fer_ray.data import prepared_set

    index = prepared_set.read_index(prepared)
    rows = index[index["split"] == "train"]
    crops = prepared_set.read_crops(prepared, rows)
    for number, row in enumerate(rows.to_dict("records")):  # a row may be there several times (`write_subset`)
        Path(folder, row["expression"]).mkdir(parents=True, exist_ok=True)
        crop = crops[row["image"]]
        bgr = crop if crop.ndim == 2 else cv2.cvtColor(crop, cv2.COLOR_RGB2BGR)
        cv2.imwrite(f"{folder}/{row['expression']}/{number}.jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 95])
    return folder


def main() -> None:
    """Print a line a round and, last, the medians as JSON."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepared", help="folder of a prepared set")
    parser.add_argument("--backbones", nargs="+", default=["alexnet", "efficientnet_lite0"])
    parser.add_argument("--images", type=int, default=320, help="training images of an epoch")
    parser.add_argument("--batch_size", type=int, default=32, help="images of a step over all processes")
    parser.add_argument("--num_workers", type=int, default=1, help="training processes")
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--feed", default="auto", choices=["auto", "memory", "stream"])
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    for hidden in ("--only", "--jpegs", "--backbone"):  # what this script gives to its own processes
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        return {"limit": limit_loop, "reference": reference_loop}[options.only](options)
    from fer_ray.cli import connection

    device = torch.cuda.get_device_name() if options.device == "cuda" else f"{CORES} CPU cores"
    start = time.time()
    connection.connect()
    print(f"{device}; ray.init {time.time() - start:.1f} s", flush=True)
    import ray  # after `connect`, which sets what Ray reads when it is imported

    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address  # for the jobs
    results = {}
    with tempfile.TemporaryDirectory(dir=Path(options.prepared).parent) as out:
        prepared = write_subset(options.prepared, f"{out}/prepared/set", options.images)
        jpegs = export_jpegs(prepared, f"{out}/jpegs")
        for backbone in options.backbones:
            rounds = []
            for _ in range(options.rounds):
                before, job = measure_limit(backbone, options), measure_job(out, backbone, options)
                limit = (before + measure_limit(backbone, options)) / 2  # the machine's speed drifts
                reference = measure_reference(jpegs, backbone, options)
                rounds.append(job | {"limit": limit, "reference": reference,
                                     "ratio_to_limit": job["images_per_s"] / limit,
                                     "ratio_to_reference": job["images_per_s"] / reference})
                print(backbone, json.dumps({key: round(value, 3) for key, value in rounds[-1].items()}), flush=True)
            results[backbone] = {key: round(statistics.median(one[key] for one in rounds), 3) for key in rounds[0]}
    print(json.dumps({"device": device, "date": date.today().isoformat(), "num_workers": options.num_workers,
                      "batch_size": options.batch_size, "feed": options.feed, "precision": options.precision,
                      **results}))


if __name__ == "__main__":
    main()
