"""Training against its limit and against the usual loop: `python scripts/bench_train.py --prepared FOLDER`.

In one run, taking turns, on real crops of a prepared set: (a) ours, the job `jobs/train.py` on a Ray that runs;
(b) the limit, the same network and optimiser steps on random tensors that lie on the device, before and after (a), with
(a)'s settings of the C library's heap; (c) the loop of torchvision's classification reference: JPEG crops in folders,
`DataLoader`, the same transforms by torchvision, DDP by torchrun with as many processes. The last line is JSON; medians
over the rounds.
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

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "jobs")]

EPOCHS = 3  # the first one warms up


def subset(prepared: str, folder: str, images: int) -> str:
    """A prepared set with `images` training images of another (some repeated, if it has fewer) and few of the rest."""
    import pandas as pd

    from fer_ray.data import prepared_set

    index = prepared_set.read_index(prepared)
    train = index[index["split"] == "train"]
    train = train.sample(images, replace=images > len(train), random_state=0)
    rest = index[index["split"] != "train"].groupby("split").head(32)
    return linked(prepared, folder, pd.concat([train, rest]).sort_values("row"))


def linked(prepared: str, folder: str, index) -> str:
    """A prepared set with these index rows of another, its parts linked."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    shutil.copytree(prepared, folder, copy_function=_link)
    os.remove(f"{folder}/index.parquet")
    pq.write_table(pa.Table.from_pandas(index, preserve_index=False), f"{folder}/index.parquet")
    return folder


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # on another disk
        shutil.copy2(source, target)


def ours(storage: str, backbone: str, options) -> dict:
    """The job on the prepared set `set`; its rates, its waiting for data and its fixed cost, imports included."""
    from fer_ray.train import tracking

    name = f"{backbone}-{time.time_ns()}"
    command = [sys.executable, str(ROOT / "jobs/train.py"), "--storage", storage, "--prepared", "set", "--name", name,
               "--train.backbone", backbone, "--train.weights", "none", "--train.epochs", str(EPOCHS),
               "--train.batch_size", str(options.batch_size), "--train.num_workers", str(options.num_workers),
               "--train.use_gpu", str(options.device == "cuda"), "--train.precision", options.precision]
    start = time.time()
    done = subprocess.run(command, capture_output=True, text=True)
    end = time.time()
    if done.returncode:
        sys.exit(done.stderr)
    epochs = tracking.read(f"{storage}/runs/{name}")
    shutil.rmtree(f"{storage}/runs/{name}")
    kept = epochs[1:]
    return {"images_per_s": sum(e["images"] for e in kept) / sum(e["train_s"] for e in kept),
            "data_wait": sum(e["data_wait_s"] for e in kept) / sum(e["train_s"] for e in kept),
            "to_loop_s": epochs[0]["loop_begun_at"] - start,
            "to_first_batch_s": epochs[0]["first_batch_at"] - epochs[0]["loop_begun_at"],
            "after_last_epoch_s": end - epochs[-1]["ended_at"]}


def limit(backbone: str, options) -> float:
    """Images/s of the same steps on random tensors that lie on the device."""
    from fer_ray.cli import connection

    return alone([sys.executable, __file__, "--only", "limit"], backbone, options, connection.HEAP)


def reference(folder: str, backbone: str, options) -> float:
    """Images/s of torchvision's reference loop, started by torchrun."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node",
                str(options.num_workers), __file__, "--only", "reference", "--jpegs", folder]
    return alone(torchrun, backbone, options, {"OMP_NUM_THREADS": str(max(1, os.cpu_count() // options.num_workers))})


def alone(command: list[str], backbone: str, options, environment: dict[str, str]) -> float:
    """Images/s that a process of its own prints."""
    given = [f"--{k}={getattr(options, k)}" for k in ("batch_size", "num_workers", "device", "precision", "images")]
    done = subprocess.run([*command, "--backbone", backbone, *given], capture_output=True, text=True,
                          env=os.environ | environment)
    if done.returncode:
        sys.exit(done.stderr)
    return float(done.stdout.strip().splitlines()[-1])


def limit_loop(options) -> None:
    """Print images/s of steps whose images need nothing."""
    import torch

    from fer_ray.config import TrainConfig
    from fer_ray.model import backbones
    from fer_ray.train import loop

    device = torch.device(options.device)
    torch.set_num_threads(max(1, os.cpu_count() // options.num_workers))
    t = TrainConfig(backbone=options.backbone, batch_size=options.batch_size, precision=options.precision)
    model = backbones.build(t.backbone).to(device, memory_format=torch.channels_last).train()
    optimizer = loop.sgd(model, t)
    images = torch.randn(t.batch_size, 3, 224, 224, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 8, (t.batch_size,), device=device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=loop.uses_bf16(t, device))
    weights, steps = torch.ones(8, device=device), options.images // t.batch_size

    def epoch() -> float:
        start = time.perf_counter()
        for _ in range(steps):
            loss = loop.train_step(model, optimizer, images, labels, weights, t.batch_size, t, autocast)
        loss.item()  # waits for the device
        return time.perf_counter() - start

    epoch()
    print(t.batch_size * steps * (EPOCHS - 1) / sum(epoch() for _ in range(EPOCHS - 1)))


def reference_loop(options) -> None:
    """Print images/s of what references/classification/train.py does, with the paper's transforms."""
    import torch
    import torch.distributed as dist
    from torch.utils.data import DataLoader, DistributedSampler
    from torchvision import datasets, transforms

    from fer_ray.config import TrainConfig
    from fer_ray.model import augment, backbones
    from fer_ray.train import loop

    dist.init_process_group("nccl" if options.device == "cuda" else "gloo")
    device = torch.device(options.device, int(os.environ["LOCAL_RANK"]) if options.device == "cuda" else None)
    chain = transforms.Compose([
        transforms.RandomCrop(224), transforms.RandomHorizontalFlip(), transforms.RandomRotation(1),
        transforms.RandomGrayscale(0.1), transforms.PILToTensor(), transforms.ConvertImageDtype(torch.float),
        transforms.Normalize(augment.MEAN.tolist(), augment.STD.tolist())])
    data = datasets.ImageFolder(options.jpegs, chain)
    sampler = DistributedSampler(data)
    loader = DataLoader(data, options.batch_size // options.num_workers, sampler=sampler, drop_last=True,
                        num_workers=max(1, os.cpu_count() // options.num_workers), pin_memory=True)
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
    """The training crops as JPEG files, a folder a class."""
    import cv2

    from fer_ray.data import prepared_set

    index = prepared_set.read_index(prepared)
    rows = index[index["split"] == "train"]
    crops = prepared_set.read_crops(prepared, rows)
    for row in rows.to_dict("records"):
        Path(folder, row["expression"]).mkdir(parents=True, exist_ok=True)
        crop = crops[row["image"]]
        bgr = crop if crop.ndim == 2 else cv2.cvtColor(crop, cv2.COLOR_RGB2BGR)
        cv2.imwrite(f"{folder}/{row['expression']}/{row['row']}.jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 95])
    return folder


def main() -> None:
    """Print every round and, last, JSON."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prepared", help="folder of a prepared set")
    parser.add_argument("--backbones", nargs="+", default=["alexnet", "efficientnet_lite0"])
    parser.add_argument("--images", type=int, default=320, help="training images of an epoch")
    parser.add_argument("--batch_size", type=int, default=32, help="images of a step over all processes")
    parser.add_argument("--num_workers", type=int, default=1, help="training processes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    for hidden in ("--only", "--jpegs", "--backbone"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        return {"limit": limit_loop, "reference": reference_loop}[options.only](options)
    from fer_ray.cli import connection

    device = torch.cuda.get_device_name() if options.device == "cuda" else f"{os.cpu_count()} CPU cores"
    start = time.time()
    connection.connect()
    print(f"{device}; ray.init {time.time() - start:.1f} s", flush=True)
    import ray  # after `connect`, which sets what Ray reads when it is imported

    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address  # for the jobs
    results = {}
    with tempfile.TemporaryDirectory(dir=Path(options.prepared).parent) as out:
        prepared = subset(options.prepared, f"{out}/prepared/set", options.images)
        jpegs = export_jpegs(prepared, f"{out}/jpegs")
        for backbone in options.backbones:
            rounds = []
            for _ in range(options.rounds):
                before, a, after = limit(backbone, options), ours(out, backbone, options), limit(backbone, options)
                b, c = (before + after) / 2, reference(jpegs, backbone, options)  # a machine's speed drifts
                rounds.append(a | {"limit": b, "reference": c, "ratio_to_limit": a["images_per_s"] / b,
                                   "ratio_to_reference": a["images_per_s"] / c})
                print(backbone, json.dumps({k: round(v, 3) for k, v in rounds[-1].items()}), flush=True)
            results[backbone] = {k: round(statistics.median(r[k] for r in rounds), 3) for k in rounds[0]}
    print(json.dumps({"device": device, "date": date.today().isoformat(), "num_workers": options.num_workers,
                      "batch_size": options.batch_size, "precision": options.precision, **results}))


if __name__ == "__main__":
    main()
