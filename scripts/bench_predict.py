"""Speed of naming expressions in photographs: `python scripts/bench_predict.py --images FOLDER`.

Measured on the same photographs, from files to a table, taking turns, `--rounds` times:

- loop: what a researcher writes: `cv2.imread`, `detectMultiScale(1.1, 5)` at full size, the network on one face at a
  time;
- python: `Recognizer` on the list of files, every face;
- largest: the same, with `faces="largest"`;
- onnx, onnx_largest: as these two, with the network exported to ONNX;
- int8, int8_largest: with the network exported to ONNX in int8;
- ray: `jobs/predict.py`'s pipeline on all cores, every face, without the start of Ray, but with that of its workers;
- service: `jobs/serve.py`, asked by 16 clients at once, a photograph a request; also the time within which 95 % of
  the requests are answered;
- ray_onnx, service_onnx: as these two, with the network exported to ONNX;
- fer: the package of that name (PyPI), if `--fer` names the Python of an environment that has it.

With `--video` instead, on a drawn film of one moving face (640 x 480 px, 30 frames/s), frames of the film a second:

- pyav, opencv: decoding all frames and taking every sixth as RGB;
- loop: `cv2.VideoCapture`, `detectMultiScale(1.1, 5)` and the network on each of the first frames;
- every_frame: `Recognizer.video(every=0)`, each frame's face found and scored;
- default: `Recognizer.video()`, five frames a second;

also a second of computing time (of all threads, so that other work on the machine counts less), and the peak memory of
a process that reads 10 s and of one that reads 10 min of it.

The network is `--backbone` with random weights, which take as long as trained ones, or `--checkpoint`. With random
weights an image is scored once, without its mirror image, as the loop does. Prints the medians; the last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import av
import cv2
import cv2.data
import numpy as np
import pandas as pd
import requests
import torch

from fer_ray import Recognizer
from fer_ray.cli import connection
from fer_ray.config import Config, TrainConfig, to_dict
from fer_ray.data import pixels
from fer_ray.data.drawn_face import render_face
from fer_ray.data_config import FacesConfig
from fer_ray.model import augment, backbones, checkpoints
from fer_ray.use import batch, inputs, networks, onnx_export
from fer_ray.use.footage import Footage
from fer_ray.use.photographs import Cutter, Search

RATE, FILM_S = 30, 10
CLIENTS, TOKEN = 16, "a-token-of-this-benchmark"
CALIBRATION = 128  # photographs, as many as jobs/export.py takes
SERVE_JOB = Path(__file__).resolve().parent.parent / "jobs/serve.py"
MEMORY = """
import resource, sys
from fer_ray import Recognizer
assert sum(bool(frame.faces) for frame in Recognizer.load(sys.argv[1]).video(sys.argv[2])) > 40
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
# What people write around the package; it takes BGR as OpenCV reads it, and its default detector is a Haar cascade.
FER = """
import json, sys, time, cv2
from fer.fer import FER
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
    job = batch.Job(folder, pictures, networks.describe(checkpoint), Search(FacesConfig()), device="cpu")
    return int(pd.read_csv(batch.predict(job))["face"].notna().sum())


def write_onnx(checkpoint: str, folder: Path) -> str:
    """The network of a checkpoint as ONNX; the file."""
    model, description = checkpoints.load_model(checkpoint)
    classifier = onnx_export.CropClassifier(model, checkpoints.read_temperature(checkpoint) or 1.0,
                                            description["config"]["train"]["flip_average"])
    program = onnx_export.trace(classifier, description["backbone"])
    onnx_export.write_onnx(program, str(folder / "model.onnx"), onnx_export.metadata_of(description, None))
    return str(folder / "model.onnx")


def write_int8(exported: str, images: list[str], folder: Path) -> str:
    """An ONNX network in int8, its ranges measured on faces of these photographs; the file."""
    cutter = Cutter(Search(FacesConfig(), faces="largest"))
    crops = []
    for image in images:
        with contextlib.suppress(pixels.ImageError):
            crops += [augment.to_rgb(crop.pixels) for crop in cutter.crops(pixels.load(image))]
    onnx_export.quantize(exported, str(folder / "int8.onnx"), crops)
    return str(folder / "int8.onnx")


def with_service(images: list[str], checkpoint: str) -> tuple[float, float]:
    """Faces a second of the service, asked by `CLIENTS` at once, and the 95th percentile of its answers' seconds."""
    import ray  # after `connection.connect`, which sets how it starts

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [sys.executable, str(SERVE_JOB), "--predict.checkpoint", checkpoint, "--serve.port", str(port)]
    shell = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, "FER_RAY_SERVE_TOKEN": TOKEN}

    client = threading.local()  # each keeps its connection
    # Written before they are sent, since the clients of a service compute on other machines.
    asked = [requests.Request("POST", f"http://127.0.0.1:{port}/predict", files={"images": Path(image).read_bytes()},
                              headers={"Authorization": f"Bearer {TOKEN}"}).prepare() for image in images]

    def ask(request: requests.PreparedRequest) -> tuple[int, float]:
        if not hasattr(client, "session"):
            client.session = requests.Session()
        start = time.perf_counter()
        answer = client.session.send(request, timeout=60)
        answer.raise_for_status()
        return len(answer.json()["results"][0]["faces"]), time.perf_counter() - start

    with subprocess.Popen(words, env=shell, text=True, stdout=subprocess.PIPE) as process:
        assert process.stdout
        try:
            while "Ctrl-C" not in (line := process.stdout.readline()):
                assert line, "the service has ended"
            with ThreadPoolExecutor(CLIENTS) as clients:
                list(clients.map(ask, asked[: 2 * CLIENTS]))  # warms up
                start = time.perf_counter()
                answers = list(clients.map(ask, asked))
                seconds = time.perf_counter() - start
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
    return sum(faces for faces, _ in answers) / seconds, float(np.percentile([each for _, each in answers], 95))


def with_fer(images: list[str], python: str, folder: Path) -> tuple[int, float]:
    """The package `fer` in its own environment; the number of faces, and seconds without its import."""
    listed = folder / "images.json"
    listed.write_text(json.dumps(images))
    done = subprocess.run([python, "-c", FER, str(listed)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{python}: the package fer does not run there\n{done.stderr}")
    faces, seconds = json.loads(done.stdout.splitlines()[-1])
    return faces, seconds


def write_film(file: Path, seconds: int) -> None:
    """A drawn face that moves and changes its expression, with a camera's noise; H.264."""
    rng, size = np.random.default_rng(0), (220, 260)
    expressions = ("neutral", "happiness", "surprise", "anger", "sadness")
    faces = [render_face(np.random.default_rng(3), name, 1.0, np.random.default_rng(0), size, 70).astype(np.float32)
             for name in expressions]
    ground = np.tile(np.linspace(60, 140, 640, dtype=np.float32), (480, 1))
    with av.open(str(file), "w") as out:
        stream = out.add_stream("libx264", rate=RATE, options={"preset": "veryfast", "crf": "20"})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 640, 480, "yuv420p"
        for number in range(seconds * RATE):
            step, part = divmod(number / RATE / 2, 1)
            turn = 2 * np.pi * number / (seconds * RATE)  # so that the film's end fits its beginning
            x, y = round(200 + 120 * np.sin(turn)), round(100 + 60 * np.sin(2 * turn))
            picture = ground.copy()
            picture[y : y + size[1], x : x + size[0]] = (
                (1 - part) * faces[int(step) % len(faces)] + part * faces[(int(step) + 1) % len(faces)])
            picture = (picture + rng.normal(0, 3, picture.shape)).clip(0, 255).astype(np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.dstack([picture] * 3), format="rgb24")))
        out.mux(stream.encode(None))


def repeat_film(file: Path, times: int, target: Path) -> None:
    """The film so many times in a row, without encoding it again."""
    with av.open(str(file)) as source, av.open(str(target), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        length = source.streams.video[0].duration or 0
        for number in range(times):
            source.seek(0)
            for packet in source.demux(video=0):
                if packet.dts is not None and packet.pts is not None:
                    packet.dts, packet.pts = packet.dts + number * length, packet.pts + number * length
                    packet.stream = stream
                    out.mux(packet)


def decode_pyav(film: Path) -> int:
    """Frames that were decoded, of which every sixth was taken."""
    with Footage(str(film)) as footage:
        number = 0
        for number, still in enumerate(footage.frames(), 1):
            if number % 6 == 0:
                still.pixels()
    return number


def decode_opencv(film: Path) -> int:
    """As `decode_pyav`."""
    capture, number = cv2.VideoCapture(str(film)), 0
    while capture.grab():
        number += 1
        if number % 6 == 0:
            cv2.cvtColor(np.asarray(capture.retrieve()[1]), cv2.COLOR_BGR2RGB)
    return number


def video_loop(film: Path, checkpoint: str, frames: int, folder: Path) -> int:
    """What a researcher writes, for the first frames; their number."""
    capture, names = cv2.VideoCapture(str(film)), []
    for number in range(frames):
        names.append(str(folder / f"{number}.bmp"))
        cv2.imwrite(names[-1], np.asarray(capture.read()[1]))
    loop(names, checkpoint, folder / "loop.csv")
    return frames


def peak_memory(film: Path, checkpoint: str) -> int:
    """MB of a process that reads the whole film."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", MEMORY, checkpoint, str(film)], capture_output=True,
                          text=True, check=True)
    return int(done.stdout) // 1024


def measure_videos(checkpoint: str, rounds: int, folder: Path) -> dict:
    """Frames a second by each way, and memory; prints a line a round."""
    short, long = folder / "short.mp4", folder / "long.mp4"
    write_film(short, FILM_S)
    repeat_film(short, 60, long)
    recognizer, frames = Recognizer.load(checkpoint), FILM_S * RATE

    def scored(every: float) -> int:
        faces = sum(bool(frame.faces) for frame in recognizer.video(short, every))
        assert faces > 0.9 * min(frames, FILM_S / (every or 1 / RATE)), f"only {faces} faces were found"
        return frames

    ways: dict[str, Callable[[], int]] = {
        "pyav": lambda: decode_pyav(short), "opencv": lambda: decode_opencv(short),
        "loop": lambda: video_loop(short, checkpoint, 60, folder),
        "every_frame": lambda: scored(0), "default": lambda: scored(0.2)}
    by_clock, by_cpu = [], []
    for _ in range(rounds):
        rates, computing = {}, {}
        for name, way in ways.items():
            start = time.process_time()
            rates[name] = timed(way)
            # what all of the process's threads computed
            computing[name] = (60 if name == "loop" else frames) / (time.process_time() - start)
        by_clock.append(rates)
        by_cpu.append(computing)
        print("  ".join(f"{name} {rates[name]:.1f} ({computing[name]:.1f})" for name in ways),
              "frames/s (a second of computing)", flush=True)
    memory = {"short": peak_memory(short, checkpoint), "long": peak_memory(long, checkpoint)}
    return {"frames_per_s": medians(by_clock), "frames_per_cpu_s": medians(by_cpu), "peak_mb": memory,
            "long_to_short": round(memory["long"] / memory["short"], 3)}


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Of each way, over the rounds."""
    return {name: round(statistics.median(rates[name] for rates in rounds), 1) for name in rounds[0]}


def random_checkpoint(backbone: str, folder: Path) -> str:
    """A checkpoint of the backbone with random weights."""
    config = to_dict(Config(train=TrainConfig(flip_average=False)))
    description = {"metrics": {"val_balanced_accuracy": 0.0}, "at_end_of_epoch": True, "config": config,
                   "progress": {"epoch": 1, "step": 0}}
    checkpoints.save(str(folder), backbone, backbones.build(backbone), {"optimizer": {}, "progress": {}}, description)
    return str(folder)


def timed(work: Callable[[], int]) -> float:
    """Faces (of a film: frames) a second."""
    start = time.perf_counter()
    faces = work()
    return faces / (time.perf_counter() - start)


def main() -> None:
    """Print a line a round, then the medians as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", help="folder of photographs")
    parser.add_argument("--video", action="store_true", help="measure a drawn film instead of photographs")
    parser.add_argument("--count", type=int, default=1000, help="number of photographs")
    parser.add_argument("--backbone", default="efficientnet_lite0", help="network with random weights")
    parser.add_argument("--checkpoint", default="", help="checkpoint to use instead")
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured")
    parser.add_argument("--fer", default="", help="python of an environment with the package fer")
    options = parser.parse_args()
    if bool(options.images) == options.video:
        parser.error("give either --images FOLDER or --video")
    warnings.simplefilter("ignore")  # random weights have no temperature
    if options.video:
        with tempfile.TemporaryDirectory() as name:
            checkpoint = options.checkpoint or random_checkpoint(options.backbone, Path(name) / "checkpoint")
            found = measure_videos(checkpoint, options.rounds, Path(name))
        print(json.dumps({**found, "backbone": options.backbone, "cores": os.cpu_count(),
                          "date": date.today().isoformat()}))
        return
    # A shell that starts this in the background has it ignore Ctrl-C, and so would the service that is ended by it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    images = [picture.image for picture in inputs.find(options.images).photographs][: options.count]
    print(f"{len(images)} photographs, {os.cpu_count()} cores, {platform.processor() or 'x86'}", flush=True)
    connection.connect()
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        if options.fer:
            with_fer(images[:1], options.fer, out)  # it should fail now, if at all
        checkpoint = options.checkpoint or random_checkpoint(options.backbone, out / "checkpoint")
        every, largest = Recognizer.load(checkpoint), Recognizer.load(checkpoint, faces="largest")
        exported = write_onnx(checkpoint, out)
        onnx, onnx_largest = Recognizer.load(exported), Recognizer.load(exported, faces="largest")
        smaller = write_int8(exported, images[:CALIBRATION], out)
        int8, int8_largest = Recognizer.load(smaller), Recognizer.load(smaller, faces="largest")
        rounds: list[dict[str, float]] = []
        latencies: list[dict[str, float]] = []
        for number in range(options.rounds):
            table = out / "table.csv"
            rates = {"loop": timed(lambda: loop(images, checkpoint, table)),  # noqa: B023
                     "python": timed(lambda: with_python(images, every, table)),  # noqa: B023
                     "largest": timed(lambda: with_python(images, largest, table)),  # noqa: B023
                     "onnx": timed(lambda: with_python(images, onnx, table)),  # noqa: B023
                     "onnx_largest": timed(lambda: with_python(images, onnx_largest, table)),  # noqa: B023
                     "int8": timed(lambda: with_python(images, int8, table)),  # noqa: B023
                     "int8_largest": timed(lambda: with_python(images, int8_largest, table)),  # noqa: B023
                     "ray": timed(lambda: with_ray(images, checkpoint, f"{out}/{number}")),  # noqa: B023
                     "ray_onnx": timed(lambda: with_ray(images, exported, f"{out}/onnx{number}"))}  # noqa: B023
            waited = {}
            rates["service"], waited["service"] = with_service(images, checkpoint)
            rates["service_onnx"], waited["service_onnx"] = with_service(images, exported)
            latencies.append(waited)
            if options.fer:
                faces, seconds = with_fer(images, options.fer, out)
                rates["fer"] = faces / seconds
            rounds.append(rates)
            print("  ".join(f"{name} {rate:.1f}" for name, rate in rates.items()), "faces/s", flush=True)
    ratios = {f"{name}_to_loop": round(statistics.median(rates[name] / rates["loop"] for rates in rounds), 2)
              for name in rounds[0] if name != "loop"}
    for name, other in (("service", "python"), ("service", "ray"),
                        ("service_onnx", "onnx"), ("service_onnx", "ray_onnx")):
        ratios[f"{name}_to_{other}"] = round(statistics.median(rates[name] / rates[other] for rates in rounds), 2)
    print(json.dumps({"faces_per_s": medians(rounds), **ratios,
                      "answered_within_s": medians(latencies), "photographs": len(images),
                      "backbone": options.backbone, "cores": os.cpu_count(), "date": date.today().isoformat()}))


if __name__ == "__main__":
    main()
