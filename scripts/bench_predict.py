"""Speed of naming expressions in photographs: `python scripts/bench_predict.py --images FOLDER`.

Measured on the same photographs, from files to a table, taking turns, `--rounds` times:

- loop: what a researcher writes: `cv2.imread`, `detectMultiScale(1.1, 5)` at full size, the network on one face at a
  time;
- python: `Recognizer` on the list of files, every face;
- largest: the same, with `faces="largest"`;
- ray: `jobs/predict.py`'s pipeline on all cores, every face, without the start of Ray, but with that of its workers;
- fer: the package of that name (PyPI), if `--fer` names the Python of an environment that has it.

The network is `--backbone` with random weights, which take as long as trained ones, or `--checkpoint`. Prints the
medians; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import date
from pathlib import Path

import cv2
import cv2.data
import numpy as np
import pandas as pd
import torch

from fer_ray import Recognizer
from fer_ray.cli import connection
from fer_ray.config import Config, to_dict
from fer_ray.data_config import FacesConfig
from fer_ray.model import augment, backbones, checkpoints
from fer_ray.use import batch, inputs
from fer_ray.use.photographs import Search

# What people write around the package; it takes BGR as OpenCV reads it, and its default detector is a Haar cascade.
FER = """
import json, sys, time, cv2
from fer import FER
images, out = json.load(open(sys.argv[1])), []
detector = FER()
begin = time.perf_counter()
for image in images:
    out += detector.detect_emotions(cv2.imread(image))
print(json.dumps([len(out), time.perf_counter() - begin]))
"""


def loop(images: list[str], checkpoint: str, table: Path) -> int:
    """What a researcher writes; the number of faces."""
    cascade = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_default.xml")
    model, _ = checkpoints.load_model(checkpoint)
    rows = []
    for image in images:
        picture = np.asarray(cv2.imread(image))
        for x, y, width, height in cascade.detectMultiScale(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), 1.1, 5):
            margin = int(0.1 * width)
            face = picture[max(0, y - margin) : y + height + margin, max(0, x - margin) : x + width + margin, ::-1]
            crop = cv2.resize(face, (augment.CROP, augment.CROP)).astype(np.float32) / 255
            tensor = torch.from_numpy((crop - augment.MEAN) / augment.STD).permute(2, 0, 1)[None]
            with torch.inference_mode():
                rows.append([image, x, y, width, height, *model(tensor).softmax(1)[0].tolist()])
    pd.DataFrame(rows).to_csv(table)
    return len(rows)


def with_python(images: list[str], recognizer: Recognizer, table: Path) -> int:
    """`Recognizer` on the list; the number of faces."""
    found = recognizer(images).to_pandas()
    found.to_csv(table)
    return int(found["face"].notna().sum())


def with_ray(images: list[str], checkpoint: str, folder: str) -> int:
    """The pipeline of jobs/predict.py; the number of faces."""
    pictures = [inputs.Picture(image, 0, 0, None) for image in images]
    job = batch.Job(folder, pictures, checkpoint, Search(FacesConfig()), device="cpu")
    return int(pd.read_csv(batch.predict(job))["face"].notna().sum())


def with_fer(images: list[str], python: str, folder: Path) -> tuple[int, float]:
    """The package `fer` in its own environment; the number of faces, and seconds without its import."""
    listed = folder / "images.json"
    listed.write_text(json.dumps(images))
    done = subprocess.run([python, "-c", FER, str(listed)], capture_output=True, text=True, check=True)
    faces, seconds = json.loads(done.stdout.splitlines()[-1])
    return faces, seconds


def random_checkpoint(backbone: str, folder: Path) -> str:
    """A checkpoint of the backbone with random weights."""
    description = {"metrics": {"val_balanced_accuracy": 0.0}, "at_end_of_epoch": True, "config": to_dict(Config()),
                   "progress": {"epoch": 1, "step": 0}}
    checkpoints.save(str(folder), backbone, backbones.build(backbone), {"optimizer": {}, "progress": {}}, description)
    return str(folder)


def timed(work: Callable[[], int]) -> float:
    """Faces a second."""
    start = time.perf_counter()
    faces = work()
    return faces / (time.perf_counter() - start)


def main() -> None:
    """Print a line a round, then the medians as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, help="folder of photographs")
    parser.add_argument("--count", type=int, default=1000, help="number of photographs")
    parser.add_argument("--backbone", default="efficientnet_lite0", help="network with random weights")
    parser.add_argument("--checkpoint", default="", help="checkpoint to use instead")
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured")
    parser.add_argument("--fer", default="", help="python of an environment with the package fer")
    options = parser.parse_args()
    images = [picture.image for picture in inputs.find(options.images).photographs][: options.count]
    print(f"{len(images)} photographs, {os.cpu_count()} cores, {platform.processor() or 'x86'}", flush=True)
    warnings.simplefilter("ignore")  # random weights have no temperature
    connection.connect()
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        checkpoint = options.checkpoint or random_checkpoint(options.backbone, out / "checkpoint")
        every, largest = Recognizer.load(checkpoint), Recognizer.load(checkpoint, faces="largest")
        rounds: list[dict[str, float]] = []
        for number in range(options.rounds):
            table = out / "table.csv"
            rates = {"loop": timed(lambda: loop(images, checkpoint, table)),  # noqa: B023
                     "python": timed(lambda: with_python(images, every, table)),  # noqa: B023
                     "largest": timed(lambda: with_python(images, largest, table)),  # noqa: B023
                     "ray": timed(lambda: with_ray(images, checkpoint, f"{out}/{number}"))}  # noqa: B023
            if options.fer:
                faces, seconds = with_fer(images, options.fer, out)
                rates["fer"] = faces / seconds
            rounds.append(rates)
            print("  ".join(f"{name} {rate:.1f}" for name, rate in rates.items()), "faces/s", flush=True)
    medians = {name: round(statistics.median(rates[name] for rates in rounds), 1) for name in rounds[0]}
    ratios = {f"{name}_to_loop": round(statistics.median(rates[name] / rates["loop"] for rates in rounds), 2)
              for name in medians if name != "loop"}
    print(json.dumps({"faces_per_s": medians, **ratios, "photographs": len(images), "backbone": options.backbone,
                      "cores": os.cpu_count(), "date": date.today().isoformat()}))


if __name__ == "__main__":
    main()
