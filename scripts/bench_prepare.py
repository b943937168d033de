"""Speed of preparing, beside the loop that a researcher writes: `python scripts/bench_prepare.py --root FOLDER`.

Measured on the same images, taking turns, `--rounds` times:

- loop: `cv2.imread`, `detectMultiScale(1.1, 5)` at full size, crop, `imwrite`, in one process that has OpenCV's own
  threads;
- ray: fer_ray on all cores, from image files to Parquet;
- one core: the same work in one process, without Ray;
- pool: the same work in a bare pool of processes, which is the limit of what Ray could reach on these cores.

Or, with `--again`: a whole prepare, and the same with ten images more, with nothing new, and with all files touched.

Prints the medians; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import tempfile
import time
from datetime import date
from pathlib import Path

import cv2
import cv2.data
import numpy as np
import pyarrow as pa

from fer_ray import storage
from fer_ray.cli import connection
from fer_ray.config import Config
from fer_ray.data import crops, manifest, pixels, prepare, prepared_set, provenance
from fer_ray.data_config import FacesConfig

CORES = os.cpu_count() or 1
ONE_CORE_IMAGES = 512
ADDED = 10

Box = tuple[int, int, int, int]  # x, y, width, height in pixels


def find_images(root: Path, count: int, side: int) -> list[str]:
    """The first `count` image files whose longer side is `side` px."""
    found = []
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        try:
            picture = pixels.load(str(path))
        except ValueError:
            continue
        if max(picture.shape[:2]) == side:
            found.append(str(path))
        if len(found) == count:
            break
    return found


def manifest_of(images: list[str], repeat: int = 1) -> manifest.Manifest:
    """The images as a data set. Repeated ones get a `./` in their path, so that each counts as a file of its own."""
    rows = [{"image": os.path.dirname(image) + "/./" * number + "/" + os.path.basename(image), "expression": "neutral",
             "subject": str(person), **dict(zip(manifest.FILE_COLUMNS, storage.stat(image), strict=True))}
            for number in range(repeat) for person, image in enumerate(images)]
    return manifest.build(rows, [], "bench", "bench")


def crop_by_loop(images: list[str], out: Path) -> dict[str, Box | None]:
    """What a researcher writes. Returns the box of each image, None where no face was found."""
    cascade = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_default.xml")
    boxes: dict[str, Box | None] = {}
    for number, image in enumerate(images):
        picture = np.asarray(cv2.imread(image))
        found = cascade.detectMultiScale(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), 1.1, 5)
        boxes[image] = None
        if len(found):
            x, y, width, height = (int(number) for number in max(found, key=lambda box: box[2]))
            boxes[image] = x, y, width, height
            margin = int(0.1 * width)
            crop = picture[max(0, y - margin) : y + height + margin, max(0, x - margin) : x + width + margin]
            cv2.imwrite(str(out / f"{number}.png"), cv2.resize(crop, (256, 256)))
    return boxes


def prepare_with_ray(data: manifest.Manifest, out: str) -> tuple[float, str]:
    """Seconds from image files to Parquet, without the split and its audit, and the folder of the parts."""
    folder = f"{out}/{time.time_ns()}"
    start = time.perf_counter()
    prepare.write_parts(folder, parts_of(data), FacesConfig(), data.rows.num_rows)
    return time.perf_counter() - start, folder


def parts_of(data: manifest.Manifest) -> list[dict]:
    """What each part of a prepared set of these images is to be made of."""
    nothing = provenance.Stored("/nowhere")
    return provenance.plan(provenance.recall(provenance.deal(data.rows), None, nothing)[0], nothing)[1]


def prepare_on_one_core(data: manifest.Manifest, out: str) -> float:
    """Images a second of the function that Ray's tasks run, in this process."""
    images = parts_of(manifest.Manifest(data.rows.slice(0, ONE_CORE_IMAGES), data.rejected))
    start = time.perf_counter()
    for part in images:
        crops.crop_parts({name: [value] for name, value in part.items()}, f"{out}/alone", FacesConfig())
    seconds = time.perf_counter() - start
    cv2.setNumThreads(-1)  # that function has set one thread; the loop may use all
    return min(ONE_CORE_IMAGES, data.rows.num_rows) / seconds


def prepare_in_pool(data: manifest.Manifest, out: str) -> float:
    """Images a second of the same function in a bare pool of processes."""
    parts = [({name: [value] for name, value in part.items()}, out, FacesConfig()) for part in parts_of(data)]
    pool = multiprocessing.get_context("fork").Pool(CORES)
    start = time.perf_counter()
    pool.starmap(crops.crop_parts, parts, chunksize=1)
    seconds = time.perf_counter() - start
    pool.close()  # not terminated: the forked processes have inherited Ray's signal handlers
    pool.join()
    return data.rows.num_rows / seconds


def box_agreement(boxes: dict[str, Box | None], data: manifest.Manifest, folder: str) -> float:
    """Of the faces that the loop found, the share whose box fer_ray meets with an IoU of at least 0.9."""
    dealt = provenance.deal(data.rows)
    names = {prepared_set.number_of(name): name for name in provenance.Stored(folder).names}
    made = prepared_set.read_metadata(folder, names.values()).merge(
        dealt.assign(part=dealt["number"].map(names)), on=["part", "part_row"])
    ours = dict(zip(made["image"], made["box"], strict=True))
    return float(np.mean([image in ours and iou(box, ours[image]) >= 0.9 for image, box in boxes.items() if box]))


def iou(one: Box, other: Box) -> float:
    """Intersection over union of two boxes."""
    width = max(0, min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0]))
    height = max(0, min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1]))
    intersection = width * height
    return intersection / (one[2] * one[3] + other[2] * other[3] - intersection)


def small_job_seconds(rows: pa.Table, out: str) -> float:
    """A whole `prepare` of few images on a running Ray: what a job costs beside its images."""
    start = time.perf_counter()
    config = Config(name="small", storage=out, faces=FacesConfig(on_no_face="whole"))
    prepare.prepare(config, manifest.Manifest(rows, manifest.build([], [], "", "").rejected))
    return time.perf_counter() - start


def again_seconds(images: list[str], out: str) -> dict[str, float]:
    """Seconds of a whole `prepare` of all images but ten, of all of them, and after all files were touched."""
    copied = Path(out) / "copied"
    copied.mkdir()
    files = [str(shutil.copy(image, copied / f"{number:05}{Path(image).suffix}"))
             for number, image in enumerate(images)]
    config, found = Config(name="again", storage=out), {}
    for what, now in (("first", files[:-ADDED]), ("ten more", files), ("nothing new", files), ("all touched", files)):
        if what == "all touched":
            for file in files:
                os.utime(file)
        data = manifest_of(now)
        start = time.perf_counter()
        prepare.prepare(config, data)
        found[what] = round(time.perf_counter() - start, 2)
    return found


def peak_memory(data: manifest.Manifest, out: str) -> int:
    """The most resident memory (MB) that any worker process has had when `data` is prepared."""
    seconds, _ = prepare_with_ray(data, out)
    peaks = [0]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if process.joinpath("cmdline").read_bytes().startswith(b"ray::"):
                status = process.joinpath("status").read_text()
                peaks.append(int(status.partition("VmHWM:")[2].split()[0]) // 1024)
        except OSError:
            continue  # the process has ended
    print(f"{data.rows.num_rows} images: {data.rows.num_rows / seconds:.1f} images/s, largest worker {max(peaks)} MB",
          flush=True)
    return max(peaks)


def main() -> None:
    """Print a line a round, then the medians as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder with images")
    parser.add_argument("--images", type=int, default=2000, help="number of images")
    parser.add_argument("--side", type=int, default=350, help="longer side of the images taken (px)")
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured")
    parser.add_argument("--repeat", type=int, default=10, help="how often the images are repeated for the memory curve")
    parser.add_argument("--again", action="store_true", help="measure only what preparing again costs")
    options = parser.parse_args()
    found = find_images(options.root, options.images, options.side)
    enough = manifest_of(found, -(-options.images // len(found)))
    data = manifest.Manifest(enough.rows.slice(0, options.images), enough.rejected)
    images = data.rows.column("image").to_pylist()
    print(f"{len(images)} images of {options.side} px, {CORES} cores, {platform.processor() or 'x86'}")
    connection.connect()
    with tempfile.TemporaryDirectory() as out:
        prepare_with_ray(manifest.Manifest(data.rows.slice(0, 256), data.rejected), out)  # starts the workers
        if options.again:
            print(json.dumps(again_seconds(images, out) | {"cores": CORES, "date": date.today().isoformat()}))
            return
        rounds, boxes, folder = [], {}, ""
        for _ in range(options.rounds):
            start = time.perf_counter()
            boxes = crop_by_loop(images, Path(out))
            loop = len(images) / (time.perf_counter() - start)
            seconds, folder = prepare_with_ray(data, out)
            rounds.append({"loop": loop, "ray": len(images) / seconds, "one core": prepare_on_one_core(data, out),
                           "pool": prepare_in_pool(data, f"{out}/pool")})
            print("  ".join(f"{name} {rate:.1f}" for name, rate in rounds[-1].items()), "images/s", flush=True)
        result = {
            **medians(rounds),
            "box_agreement": round(box_agreement(boxes, data, folder), 4),
            "job_of_50_images_s": round(small_job_seconds(data.rows.slice(0, 50), out), 1),
            "worker_memory_mb": {str(len(images)): peak_memory(data, out),
                                 str(len(images) * options.repeat): peak_memory(manifest_of(images, options.repeat),
                                                                                out)},
        }
    print(json.dumps(result | {"cores": CORES, "date": date.today().isoformat()}))


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Medians of the rates, and of the ratios within each round: a machine's speed drifts from round to round."""
    def median(ratio) -> float:
        return statistics.median(map(ratio, rounds))

    return {
        "images_per_s": round(median(lambda rate: rate["ray"]), 1),
        "loop_images_per_s": round(median(lambda rate: rate["loop"]), 1),
        "ratio_to_loop": round(median(lambda rate: rate["ray"] / rate["loop"]), 2),
        "core_efficiency": round(median(lambda rate: rate["ray"] / (rate["one core"] * CORES)), 3),
        "core_efficiency_of_bare_pool": round(median(lambda rate: rate["pool"] / (rate["one core"] * CORES)), 3),
    }


if __name__ == "__main__":
    main()
