"""The steps of predicting many photographs, without Ray, and what a killed job left: used again, or made again."""

import dataclasses

import checkpoints as tiny
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fer_ray import Recognizer, storage
from fer_ray.data.drawn_face import render_face
from fer_ray.data.manifest import PROBABILITIES
from fer_ray.data_config import FacesConfig
from fer_ray.use import batch, gallery, recognition
from fer_ray.use.inputs import Picture
from fer_ray.use.photographs import Search
from fer_ray.use.recognition import SCHEMA

NAMES = ["a.png", "NA", "ü, b.png"]
TABLE = 'image,face,expression,reason\na.png,0,fear,\na.png,1,fear,\nNA,,,file not found\n"ü, b.png",0,anger,\n'


def picture(image: str, reason: str | None = None) -> Picture:
    return Picture(image, 1, 2, reason)


def job(folder, names=(), checkpoint: str = "c", device="cpu") -> batch.Job:
    return batch.Job(str(folder), [picture(name) for name in names], tiny.described(checkpoint),
                     Search(FacesConfig()), device)


@pytest.fixture(scope="module")
def album(tmp_path_factory):
    """A checkpoint, and photographs of two faces, of one, of none, and damaged."""
    folder = tmp_path_factory.mktemp("album")
    faces = [render_face(np.random.default_rng(n), "happiness", 1.0, np.random.default_rng(0), (180, 180), 50 - 8 * n)
             for n in range(2)]
    cv2.imwrite(str(folder / "two.png"), np.hstack(faces))
    cv2.imwrite(str(folder / "one.png"), np.dstack([faces[1]] * 3))
    cv2.imwrite(str(folder / "none.png"), np.full((100, 100), 128, np.uint8))
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    (folder / "empty.png").write_bytes(b"")
    return folder, tiny.write(folder / "checkpoint", temperature=1.5)


def run_steps(pictures: list[dict], search: Search, checkpoint: str, uri: str) -> pa.Table:
    """What Ray Data does with one part; the part."""
    made = pa.Table.from_pylist([{"uri": uri, "images": pictures}])
    written = batch.Scorer(checkpoint, "cpu")(batch.cut_part(made, search))
    assert written.to_pylist() == [{"uri": uri}]
    return pq.read_table(uri)


def test_a_part_says_what_the_recognizer_says(album, tmp_path):
    folder, checkpoint = album
    files = [str(folder / f"{name}.png") for name in ("two", "broken", "none", "empty", "one")]
    part = run_steps([vars(picture(file)) for file in files] + [vars(picture("secret.png", "path leaves"))],
                     Search(FacesConfig()), checkpoint, str(tmp_path / "part.parquet"))
    expected = Recognizer.load(checkpoint)(files).to_pandas()
    rows = part.to_pandas()
    assert rows["image"].tolist() == [files[0], *files, "secret.png"]
    assert rows["reason"].tolist()[-1] == "path leaves" and rows["reason"][4] == "empty file"
    same = [column for column in SCHEMA.names if column not in (*PROBABILITIES, "image")]
    numbers = ["face", "x", "y", "width", "height", "score", "angle"]
    assert (rows[numbers].iloc[:-1].fillna(-1).to_numpy() == expected[numbers].astype(float).fillna(-1)).all(axis=None)
    assert rows["expression"].tolist()[:-1] == expected["expression"].tolist() and "reason" in same
    difference = rows[PROBABILITIES].iloc[:-1] - expected[PROBABILITIES]
    assert difference.abs().max(axis=None) <= 1e-5 and difference.notna().sum().max() == 3


def test_photographs_that_a_node_does_not_have_end_the_job(tmp_path):
    with pytest.raises(storage.StorageError, match="gone.png: is not to be found on .*under the same path"):
        batch.cut_part(pa.Table.from_pylist([{"uri": "p", "images": [vars(picture(str(tmp_path / "gone.png")))]}]),
                       Search(FacesConfig()))


@pytest.mark.parametrize(("cluster", "device", "workers", "cpus"), [
    ({"CPU": 1}, "cpu", 1, 0.5), ({"CPU": 2}, "cpu", 1, 1), ({"CPU": 4}, "cpu", 2, 1), ({"CPU": 64}, "cpu", 32, 1),
    ({"CPU": 16, "GPU": 3}, "cuda", 3, 1), ({"CPU": 16}, "cuda", 1, 1), ({"CPU": 16, "GPU": 3}, "cpu", 8, 1)])
def test_the_pool_leaves_cpus_for_those_who_feed_it(tmp_path, cluster, device, workers, cpus):
    options = batch.worker_options(cluster, job(tmp_path, device=device))
    assert options["compute"].min_size == options["compute"].max_size == workers
    assert (options["num_cpus"], options["num_gpus"]) == (cpus, int(device == "cuda"))
    assert workers * cpus + batch.CPUS_PER_TASK <= cluster["CPU"]


# --- copies and the page ---------------------------------------------------------------------------------


def test_copies_have_unique_plain_names_and_their_faces_drawn(album, tmp_path):
    folder, checkpoint = album
    files = [str(folder / f"{name}.png") for name in ("none", "two", "one")]
    uri = str(tmp_path / "part.parquet")
    table = run_steps([vars(picture(file)) for file in files], Search(FacesConfig()), checkpoint, uri)
    copies = gallery.copies_of(table, 64)
    assert copies == {files[1]: "0000065-two.jpg", files[2]: "0000066-one.jpg"}
    names = pa.Table.from_pylist([{"image": "s3://b/ü <x>.png", "face": 0}], schema=SCHEMA)
    assert gallery.copies_of(names, 0) == {"s3://b/ü <x>.png": "0000000-_x_.jpg"}
    done = gallery.draw_part({"part": uri, "images": list(copies), "files": list(copies.values())}, str(tmp_path))
    assert done == {"drawn": 2}
    with Image.open(tmp_path / "0000065-two.jpg") as copy:
        assert copy.size == (360, 180) and np.ptp(np.asarray(copy), axis=2).max() > 10  # boxes are in colour


def test_a_job_whose_parts_are_there_needs_no_ray(album, tmp_path):
    """What another run left is used: with Ray's import in the way, nothing of it is asked for."""
    folder, checkpoint = album
    work = job(tmp_path / "out", [str(folder / "two.png"), str(folder / "none.png")], checkpoint)
    (uri,) = work.parts()
    storage.write_json(f"{work.folder}/request.json", {"request": batch._request(work)})
    run_steps([vars(one) for one in work.pictures], work.search, checkpoint, uri)
    table = batch.predict(work)
    text = (tmp_path / "out/predictions.csv").read_text()
    assert table == work.table and len(text.splitlines()) == 4 and ",no face found" in text
    assert text.splitlines()[1].split(",")[1] == "0"  # whole numbers, beside a row without one
    before = (tmp_path / "out/predictions.csv").stat().st_mtime_ns
    assert batch.predict(work) == table and (tmp_path / "out/predictions.csv").stat().st_mtime_ns == before
    (tmp_path / "out/predictions.parquet").write_bytes(b"PAR1")
    batch.predict(work)
    assert pq.read_table(tmp_path / "out/predictions.parquet").schema.equals(SCHEMA)
    copies = gallery.copies_of(pq.read_table(uri), 0)
    gallery.draw_part({"part": uri, "images": list(copies), "files": list(copies.values())},
                      f"{work.folder}/annotated")
    page = (tmp_path / "out/gallery.html")
    assert gallery.write(work, "mine") == str(page)
    shown = page.read_text()
    assert "mine: 2 faces in 2 photographs" in shown and "annotated/0000000-two.jpg" in shown
    assert "no face found" in shown


# --- what an earlier run left ----------------------------------------------------------------------------


@pytest.mark.parametrize(("content", "whole"), [
    (TABLE, True), (None, False), ("", False), (TABLE[:-1], False), (TABLE[: TABLE.index("\nNA") + 1], False),
    (TABLE.replace("a.png", "c.png"), False), ("\0\n", False)])
def test_a_table_is_used_again_only_if_it_has_rows_for_each_image(tmp_path, content, whole):
    if content is not None:
        (tmp_path / "predictions.csv").write_text(content)
    rows = [{"image": image} for image in ("a.png", "a.png", "NA", "ü, b.png")]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), tmp_path / "predictions.parquet")
    assert batch._has_all(job(tmp_path, NAMES)) is whole


def test_a_table_whose_other_form_is_not_there_is_made_again(tmp_path):
    (tmp_path / "predictions.csv").write_text(TABLE)
    assert not batch._has_all(job(tmp_path, NAMES))


@pytest.mark.parametrize("damage", [lambda c: c, lambda c: None, lambda c: b"", lambda c: c[:-20],
                                    lambda c: c[: len(c) // 2], lambda c: b"PAR1" + c[10:]])
def test_a_damaged_part_is_as_good_as_none(tmp_path, damage):
    file = tmp_path / "part.parquet"
    rows = [{"image": "a.png", "face": 0, "expression": "fear", "p_fear": 1.0}]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), file)
    content = file.read_bytes()
    damaged = damage(content)
    file.unlink() if damaged is None else file.write_bytes(damaged)
    assert (recognition.read_table(str(file), SCHEMA) is not None) == (damaged == content)


def test_a_part_of_another_table_is_no_part(tmp_path):
    pq.write_table(pa.table({"image": ["a.png"]}), tmp_path / "part.parquet")
    assert recognition.read_table(str(tmp_path / "part.parquet"), SCHEMA) is None


@pytest.mark.parametrize(("content", "same"), [('{"request": "r"}', True), ('{"request": "other"}', False),
                                               ('{"request', False), ("[]", False), (None, False)])
def test_predictions_belong_to_their_request(tmp_path, content, same):
    if content is not None:
        (tmp_path / "request.json").write_text(content)
    assert batch._is_of("r", str(tmp_path / "request.json")) is same


def test_another_network_option_or_picture_is_another_request(album, tmp_path):
    folder, checkpoint = album
    work = job(tmp_path, NAMES, checkpoint)
    others = [job(tmp_path, NAMES[:2], checkpoint),
              dataclasses.replace(work, search=Search(FacesConfig(), tilt=True)),
              dataclasses.replace(work, pictures=[Picture("a.png", 1, 3, None), *work.pictures[1:]]),
              job(tmp_path, NAMES, tiny.write(tmp_path / "other", temperature=2.0))]
    assert len({batch._request(one) for one in (work, *others)}) == 5
    assert batch._request(job(tmp_path / "elsewhere", NAMES, checkpoint, device="cuda")) == batch._request(work)


def test_an_outage_is_not_taken_for_a_damaged_part(monkeypatch):
    def fail(uri):
        raise storage.StorageError(f"{uri}: no answer")

    monkeypatch.setattr(storage, "read_bytes", fail)
    with pytest.raises(storage.StorageError):
        recognition.read_table("s3://bucket/part.parquet", SCHEMA)
