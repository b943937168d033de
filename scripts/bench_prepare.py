"""Preparing against the loop that a researcher writes: `python scripts/bench_prepare.py --root FOLDER [--repeat N]`.

On the same images in one run: (a) `cv2.imread`, `detectMultiScale(1.1, 5)` at full size, crop, `imwrite`, in one
process with OpenCV's own threads; (b) ours with Ray on all cores, from files to Parquet; (c) ours in one process on one
core, without Ray; (d) the same in a bare pool of processes. They take turns, `--rounds` times; the medians count. The
last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent.parent / "jobs")]

import cv2  # noqa: E402
import numpy as np  # noqa: E402

from fer_ray.cli import connection  # noqa: E402
from fer_ray.config import Config, FacesConfig  # noqa: E402
from fer_ray.data import manifest, pixels, prepare, prepared_set  # noqa: E402


def images_of(root: Path, count: int, side: int) -> list[str]:
    """The first `count` files whose longer side is `side` px."""
    found = []
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        try:
            picture = pixels.load(str(path))
        except ValueError:
            continue
        if max(picture.shape[:2]) == side:
            found.append(str(path))
        if len(found) == count:
            break
    return found


def loop(images: list[str], out: Path) -> dict[str, tuple | None]:
    """What a researcher writes; the box of each image."""
    cascade = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_default.xml")
    boxes = {}
    for number, image in enumerate(images):
        picture = cv2.imread(image)
        found = cascade.detectMultiScale(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), 1.1, 5)
        boxes[image] = max(map(tuple, found), key=lambda b: b[2]) if len(found) else None
        if boxes[image]:
            x, y, w, h = boxes[image]
            grow = int(0.1 * w)
            crop = picture[max(0, y - grow) : y + h + grow, max(0, x - grow) : x + w + grow]
            cv2.imwrite(str(out / f"{number}.png"), cv2.resize(crop, (256, 256)))
    return boxes


def rows_of(images: list[str], repeat: int) -> manifest.Manifest:
    """The images as a data set; repeated ones are told apart by a `./` in their path, so that all are read."""
    rows = [{"image": os.path.dirname(i) + "/./" * k + "/" + os.path.basename(i), "expression": "neutral",
             "subject": str(n)} for k in range(repeat) for n, i in enumerate(images)]
    return manifest.build(rows, [], "bench", "bench")


def with_ray(data: manifest.Manifest, out: str) -> tuple[float, str]:
    """Seconds from files to Parquet, without the split and its audit, and the folder of the parts."""
    folder = f"{out}/{time.time_ns()}"
    start = time.perf_counter()
    prepare.write_parts(folder, data.rows, FacesConfig())
    return time.perf_counter() - start, folder


def main() -> None:
    """Print the medians of all rounds and, last, JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="folder with images")
    parser.add_argument("--images", type=int, default=2000, help="number of images")
    parser.add_argument("--side", type=int, default=350, help="longer side of the images taken (px)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=10, help="how often the images are repeated for the memory curve")
    options = parser.parse_args()
    images = images_of(options.root, options.images, options.side)
    repeat = -(-options.images // len(images))
    data = rows_of(images, repeat)
    data = manifest.Manifest(data.rows.slice(0, options.images), data.rejected)
    images = data.rows.column("image").to_pylist()
    print(f"{len(images)} images of {options.side} px, {os.cpu_count()} cores, {platform.processor() or 'x86'}")
    connection.connect()
    with tempfile.TemporaryDirectory() as out:
        with_ray(data.__class__(data.rows.slice(0, 256), data.rejected), out)  # starts the workers
        naive, ours, alone, pool = [], [], [], []
        for _ in range(options.rounds):
            start = time.perf_counter()
            boxes = loop(images, Path(out))
            naive.append(len(images) / (time.perf_counter() - start))
            seconds, folder = with_ray(data, out)
            ours.append(len(images) / seconds)
            start = time.perf_counter()
            prepare.crop_parts({"part": [0], "images": [data.rows.slice(0, 512).to_pylist()]}, f"{out}/alone",
                               FacesConfig())
            alone.append(512 / (time.perf_counter() - start))
            cv2.setNumThreads(-1)  # one core for ours alone, all for the loop
            pool.append(without_ray(data, f"{out}/pool"))
            print(f"loop {naive[-1]:.1f}  ours {ours[-1]:.1f}  ours on one core {alone[-1]:.1f}  in a bare pool of "
                  f"processes {pool[-1]:.1f} images/s", flush=True)
        agreement = agree(boxes, data, folder)
        small = prepare_job_seconds(data.rows.slice(0, 50), out)
        memory = [peak_memory(data, out), peak_memory(rows_of(images, options.repeat), out)]
    cores = os.cpu_count()
    ratios, efficiencies, limits = zip(*((o / n, o / (a * cores), p / (a * cores))
                                         for o, n, a, p in zip(ours, naive, alone, pool, strict=True)), strict=True)
    result = {
        "images_per_s": round(statistics.median(ours), 1),
        "loop_images_per_s": round(statistics.median(naive), 1),
        "ratio_to_loop": round(statistics.median(ratios), 2),
        "core_efficiency": round(statistics.median(efficiencies), 3),
        "core_efficiency_of_bare_pool": round(statistics.median(limits), 3),
        "box_agreement": round(agreement, 4),
        "job_of_50_images_s": round(small, 1),
        "worker_memory_mb": {str(len(images)): memory[0], str(len(images) * options.repeat): memory[1]},
        "cores": os.cpu_count(), "date": date.today().isoformat(),
    }
    print(json.dumps(result))


def without_ray(data: manifest.Manifest, out: str) -> float:
    """Images/s of the same function in a bare pool of processes: what this machine's cores can do side by side."""
    images = data.rows.to_pylist()
    parts = [{"part": [p], "images": [images[p * prepared_set.PART_ROWS : (p + 1) * prepared_set.PART_ROWS]]}
             for p in range(len(images) // prepared_set.PART_ROWS)]
    pool = multiprocessing.get_context("fork").Pool(os.cpu_count())
    start = time.perf_counter()
    pool.starmap(prepare.crop_parts, [(part, out, FacesConfig()) for part in parts], chunksize=1)
    seconds = time.perf_counter() - start
    pool.close()  # not terminated: the signal would meet the handlers inherited from Ray
    pool.join()
    return len(parts) * prepared_set.PART_ROWS / seconds


def agree(boxes: dict, data: manifest.Manifest, folder: str) -> float:
    """Share of the loop's faces whose box ours meets with an IoU of at least 0.9."""
    parts = prepared_set.read_metadata(folder, -(-data.rows.num_rows // prepared_set.PART_ROWS))
    ours = dict(zip((data.rows.column("image")[r].as_py() for r in parts["row"]), parts["box"], strict=True))
    return float(np.mean([i in ours and iou(box, ours[i]) >= 0.9 for i, box in boxes.items() if box]))


def iou(a, b) -> float:
    """Of two boxes (x, y, w, h)."""
    w = max(0, min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0]))
    h = max(0, min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1]))
    return w * h / (a[2] * a[3] + b[2] * b[3] - w * h)


def prepare_job_seconds(rows, out: str) -> float:
    """A whole `prepare` of few images on a running Ray: what a job costs beside its images."""
    start = time.perf_counter()
    config = Config(name="small", storage=out, faces=FacesConfig(on_no_face="whole"))
    prepare.prepare(config, manifest.Manifest(rows, manifest.build([], [], "", "").rejected))
    return time.perf_counter() - start


def peak_memory(data: manifest.Manifest, out: str) -> int:
    """The most resident memory (MB) that any worker process has had when `data` is prepared."""
    seconds, _ = with_ray(data, out)
    peaks = [0]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if process.joinpath("cmdline").read_bytes().startswith(b"ray::"):
                status = process.joinpath("status").read_text()
                peaks.append(int(status.partition("VmHWM:")[2].split()[0]) // 1024)
        except OSError:
            continue  # it ended
    print(f"{data.rows.num_rows} images: {data.rows.num_rows / seconds:.1f} images/s, largest worker {max(peaks)} MB",
          flush=True)
    return max(peaks)


if __name__ == "__main__":
    main()
