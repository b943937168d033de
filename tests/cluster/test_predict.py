"""Predicting photographs on a cluster: one table by three ways, resumed after a kill, shared by two nodes."""

import dataclasses
import io
import subprocess
import sys
import time
from pathlib import Path

import checkpoints as tiny
import numpy as np
import pandas as pd
import pytest
import videos
from cluster.conftest import environment, nodes_of, ray_on, run_job

from fer_ray import Recognizer
from fer_ray.data import prepared_set
from fer_ray.data.manifest import PROBABILITIES
from fer_ray.data_config import FacesConfig
from fer_ray.evaluate import calibration, inference
from fer_ray.use import batch, networks
from fer_ray.use import videos as of_videos
from fer_ray.use.inputs import Picture
from fer_ray.use.photographs import Search


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("checkpoint") / "c", temperature=1.4)


def test_evaluating_predicting_and_python_give_the_same_probabilities(prepared, checkpoint, tmp_path):
    """For the same crop; evaluation is without the temperature, which it fits."""
    uri = prepared_set.uri_of(prepared)
    index = prepared_set.read_index(uri).sort_values("row").groupby("subject").head(5)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nno more")
    images = [*index["image"], str(broken)]
    job = batch.Job(str(tmp_path / "out"), [Picture(image, 1, 1, None) for image in images],
                    networks.describe(checkpoint), Search(FacesConfig()), device="cpu")
    with ray_on(2), pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "PART_IMAGES", 8)
        evaluated = inference.predict(uri, index, 64, checkpoint=checkpoint)
        table = Path(batch.predict(job))
        whole, part = table.read_bytes(), sorted(table.parent.glob("part-*"))[1]
        # a kill left one part half written, and no table
        part.write_bytes(part.read_bytes()[:-9])
        table.unlink()
        assert batch.predict(job) == str(table) and table.read_bytes() == whole
    found = pd.read_csv(table)
    assert found["image"].drop_duplicates().tolist() == images and found["reason"].notna().sum() == 1
    largest = found[found["face"] == 0]
    assert [" ".join(map(str, box)) for box in index["box"]] == [
        " ".join(str(int(v)) for v in box) for box in largest[["x", "y", "width", "height"]].to_numpy()]
    expected = calibration.at_temperature(evaluated, 1.4)
    assert np.abs(largest[PROBABILITIES].to_numpy() - expected).max() <= 1e-5
    exported = dataclasses.replace(job, folder=str(tmp_path / "onnx"),
                                   network=networks.describe(tiny.export(checkpoint, tmp_path / "model.onnx")))
    with ray_on(2):
        of_onnx = pd.read_csv(batch.predict(exported))
    assert np.abs(of_onnx[PROBABILITIES].dropna() - found[PROBABILITIES].dropna()).max(axis=None) <= 1e-4
    python = Recognizer.load(checkpoint)(images).to_pandas()
    assert np.abs(python[PROBABILITIES].dropna().to_numpy() - found[PROBABILITIES].dropna()).max(axis=None) <= 1e-5


def test_the_job_reads_photographs_and_videos_and_writes_tables_copies_and_pages(sample_of, checkpoint, tmp_path):
    faces = sample_of(tmp_path / "faces", people=1) / "jaffe"
    film = videos.write(faces / "film.mp4", videos.walk(2.5))
    (faces / "broken.mov").write_bytes(b"no video")
    options = ["--storage", str(tmp_path / "out"), "--name", "mine", "--predict.checkpoint", checkpoint,
               "--predict.images", "faces/jaffe/**", "--predict.annotate", "--predict.every", "0.5",
               "--faces.enlarge", "0.5"]
    out = tmp_path / "out/predictions/mine"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(of_videos, "SEGMENT_S", 1.0)
        done = run_job("predict", *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        (page,) = out.glob("videos/film-*/timeline.html")
        for line in (f"result: {out}/predictions.csv", f"predict: gallery {out}/gallery.html",
                     "faces.enlarge is 0.2, as the network was trained, and not 0.5",
                     "photographs, 2 videos found; 1 other file not read: without extension 1",
                     "2 videos, 2.4 s, 5 frames looked at of 25, 1 face followed; 1 not readable",
                     f"predict: timeline {page}"):
            assert line in done.stdout, (line, done.stdout)
        table = pd.read_parquet(out / "predictions.parquet")
        assert table["image"].drop_duplicates().tolist() == sorted(str(path) for path in faces.rglob("*.tiff"))
        with_faces = table.loc[table["face"].notna(), "image"].nunique()
        assert with_faces > 0 and len(list((out / "annotated").iterdir())) == with_faces
        frames = (out / "frames.csv").read_bytes()
        assert pd.read_csv(io.BytesIO(frames))["video"].tolist() == [str(faces / "broken.mov"), *[film] * 5]
        assert (page.parent / "annotated.mp4").stat().st_size > 1000
        parts = sorted(page.parent.glob("part-*.parquet"))
        assert len(parts) == 3
        rewritten = {out / name for name in ("gallery.html", "frames.csv", "frames.parquet", "videos.csv")}
        before = {path: path.stat().st_mtime_ns for path in {*out.rglob("*")} - rewritten if path.is_file()}
        parts[1].write_bytes(b"PAR1")  # what a kill may leave
        assert run_job("predict", *options, cwd=tmp_path).returncode == 0
    assert [path for path in before if path.stat().st_mtime_ns != before[path]] == [parts[1]]
    assert (out / "frames.csv").read_bytes() == frames
    assert pd.read_csv(io.BytesIO((out / "predictions.csv").read_bytes())).shape == table.shape


DRIVER = """
import sys
from fer_ray.cli import connection
from fer_ray.data_config import FacesConfig
from fer_ray.use import batch, networks
from fer_ray.use.inputs import Picture
from fer_ray.use.photographs import Search

folder, checkpoint, *images = sys.argv[1:]
batch.PART_IMAGES = 2
connection.connect()
batch.predict(batch.Job(folder, [Picture(image, 1, 1, None) for image in images],
                        networks.describe(checkpoint), Search(FacesConfig(), "largest"), device="cpu"))
"""


@pytest.mark.nodes
def test_two_nodes_share_the_photographs_and_a_killed_job_goes_on(sample_of, checkpoint, tmp_path):
    images = sorted(str(path) for path in sample_of(tmp_path / "faces", people=2).rglob("*.png"))
    out, script = tmp_path / "out", [sys.executable, "-c", DRIVER, str(tmp_path / "out"), checkpoint, *images]
    with nodes_of(2, 2) as (cluster, others):
        from ray.util import state

        shell = environment(RAY_ADDRESS=cluster.address)
        with subprocess.Popen(script, env=shell, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as killed:
            while len(list(out.glob("part-*.parquet"))) < 5:
                assert killed.poll() is None
                time.sleep(0.05)
            killed.kill()
        first = {path: path.stat().st_mtime_ns for path in out.glob("part-*.parquet")}
        assert len(first) < len(images) / 2 and not (out / "predictions.csv").exists()
        done = subprocess.run(script, env=shell, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        workers = [actor for actor in state.list_actors(address=cluster.address) if "Scorer" in actor.class_name]
        assert len({actor.node_id for actor in workers} - {None}) == 2, workers  # None: killed before it had a node
    assert first == {path: path.stat().st_mtime_ns for path in first}  # they are not made again
    assert pd.read_csv(out / "predictions.csv")["image"].tolist() == images
