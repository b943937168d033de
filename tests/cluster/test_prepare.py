"""Preparing on real files and a real Ray: nothing lost, nothing leaked, the same bytes whatever happens."""

import dataclasses
import io
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from cluster.conftest import command, joining, nodes_of, ray_on, run_job
from PIL import Image

from fer_ray.config import Config
from fer_ray.data import crops, drawn_face, leaks, prepare
from fer_ray.data.sources import read_manifest
from fer_ray.data_config import DataConfig, FacesConfig, FolderConfig, SplitConfig
from fer_ray.report import prepared_page


def config_for(root, out, **options) -> Config:
    return Config(name="set", storage=str(out), data=DataConfig("auto", str(root)), **options)


def prepared(config: Config) -> Path:
    return Path(prepare.prepare(config, read_manifest(config.data, config.split.by)))


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def table(folder: Path, name: str):
    return pq.read_table(folder / f"{name}.parquet").to_pandas()


@pytest.fixture(scope="module")
def faces_root(sample_of, tmp_path_factory):
    return sample_of(tmp_path_factory.mktemp("sample"), people=6)


@pytest.fixture(scope="module")
def messy(faces_root, tmp_path_factory):
    """Good faces of twenty people, and every kind of bad file, in one folder a class."""
    root = tmp_path_factory.mktemp("messy")
    for folder in ("happy", "sad"):
        (root / folder).mkdir()
    good = []
    rng = np.random.default_rng(0)
    for person in range(20):
        face = drawn_face.render_face(np.random.default_rng(person), "happiness" if person % 2 else "sadness", 1.0, rng,
                                  (320, 320), 110)
        path = root / ("happy" if person % 2 else "sad") / f"p{person:02}_1.png"
        cv2.imwrite(str(path), face)
        good.append(path)
    one = Image.open(good[0]).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    one.rotate(90, expand=True).save(root / "sad/p30_1.jpg", exif=exif)
    one.convert("CMYK").save(root / "sad/p31_1.jpg")
    one.convert("P").save(root / "sad/p32_1.gif", save_all=True, append_images=[Image.new("P", one.size)])
    one.convert("RGBA").save(root / "sad/p33_1.png")
    Image.fromarray(np.asarray(one.convert("L")).astype(np.uint16) * 257).save(root / "sad/p34_1.png")
    bad = {"empty.jpg": b"", "text.jpg": b"hello", "cut.png": good[0].read_bytes()[:2000],
           "one.png": encoded(Image.new("L", (1, 1))), "bomb.png": encoded(Image.new("1", (20000, 20000))),
           "blank.png": encoded(Image.new("L", (200, 200), 128))}
    for name, data in bad.items():
        (root / "sad" / name).write_bytes(data)
    with open(os.path.join(os.fsencode(root), b"sad/\xe9\xff.png"), "wb") as stream:
        stream.write(good[3].read_bytes())
    return root, len(good) + 5 + 1, len(bad)


def encoded(image: Image.Image) -> bytes:
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return sink.getvalue()


def in_this_process(function, items: list[dict]) -> Iterator[dict]:
    """What Ray's workers do, the last item first."""
    for item in reversed(items):
        yield function({name: [value] for name, value in item.items()})


def test_one_process_and_two_workers_give_the_same_bytes_and_again_is_a_no_op(faces_root, tmp_path, monkeypatch):
    config = config_for(faces_root, tmp_path / "one")
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "_on_workers", in_this_process)
        one = prepared(config)
        before = content(one)
        times = {p: p.stat().st_mtime_ns for p in one.rglob("*")}
        assert prepared(config) == one and times == {p: p.stat().st_mtime_ns for p in one.rglob("*")}
    with ray_on(2):
        two = content(prepared(config_for(faces_root, tmp_path / "two")))
        other = content(prepared(dataclasses.replace(config, split=SplitConfig(seed=1))))
        # images that were touched are read by workers, and no crop is made again
        for file in faces_root.rglob("*.tiff"):
            os.utime(file)
        monkeypatch.setattr(crops, "_make_part", lambda *_: pytest.fail("a crop was made again"))
        touched = content(prepared(dataclasses.replace(config, split=SplitConfig(seed=1))))
    assert {name for name in touched if touched[name] != other[name]} == {"contents.parquet", "prepared.json"}
    assert before == two
    assert json.loads(two["prepared.json"])["fingerprint"] != json.loads(other["prepared.json"])["fingerprint"]
    # another split decodes nothing again
    assert {k: v for k, v in other.items() if "images/" in k} == {k: v for k, v in before.items() if "images/" in k}


def test_every_bad_file_is_a_row_with_its_reason_and_none_stops_the_job(messy, tmp_path):
    root, good, bad = messy
    config = dataclasses.replace(config_for(root, tmp_path), data=DataConfig(
        "auto", str(root), folder=FolderConfig(subject_pattern=r"(p\d\d)_")))
    with ray_on(2):
        folder = prepared(config)
        index, rejected = table(folder, "index"), table(folder, "rejected").set_index("image").reason
        assert len(index) == good and len(rejected) == bad
        for name, why in (("empty.jpg", "empty file"), ("text.jpg", "not an image"), ("cut.png", "damaged image"),
                          ("one.png", "too small: 1 x 1"), ("bomb.png", "too large: 400000000 px"),
                          ("blank.png", "no face found")):
            assert why in rejected[f"{root}/sad/{name}"]
        # the same face in five file formats, one of them turned, is one near-duplicate cluster and stays together
        copies = index[index.image.str.contains(r"p00_1|p3\d_1")]
        assert len(copies) == 6 and copies.split.nunique() == 1
        summary = json.loads((folder / "prepared.json").read_text())
        assert summary["leaks"] == dict.fromkeys(leaks.LEAK_KINDS, 0) and summary["near_duplicates"] >= 5
        assert sum(summary["counts"]["read"]["folder"].values()) == good + bad
        page = Path(prepared_page.write(str(folder), "set")).read_text()
        assert "too large: 400000000 px" in page and "http" not in page.replace("http-equiv", "")
        whole = prepared(dataclasses.replace(config, prepared="whole", faces=FacesConfig(on_no_face="whole")))
        index = table(whole, "index").set_index("image")
        assert not index.face_found[f"{root}/sad/blank.png"] and index.face_found.sum() == good
        cropped = table(prepared(dataclasses.replace(config, replace=True, faces=FacesConfig(already_cropped=True))),
                        "index")
        assert not cropped.face_found.any() and len(cropped) == good + 1


def test_planted_leaks_are_all_found(messy, faces_root, tmp_path):
    root, _, _ = messy
    with ray_on(2):
        clean = prepared(config_for(root, tmp_path / "a", faces=FacesConfig()))
        index = table(clean, "index")
        people = index[index.image.str.contains(r"p[01]\d_1")]
        assert leaks.audit(people.assign(split="train")).empty
        changes = {"flip": lambda p: p[:, ::-1], "bright": lambda p: cv2.add(p, np.full_like(p, 25)),
                   "jpeg": lambda p: cv2.imdecode(cv2.imencode(".jpg", p, [cv2.IMWRITE_JPEG_QUALITY, 50])[1], 1)}
        planted = tmp_path / "planted"
        for number, image in enumerate(sorted(people.image)):
            picture = cv2.imread(image)
            (planted / "train/sad").mkdir(parents=True, exist_ok=True)
            (planted / "test/sad").mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(planted / f"train/sad/p{number:02}_1.png"), picture)
            change = sorted(changes)[number % 3]
            cv2.imwrite(str(planted / f"test/sad/q{number:02}_{change}.png"), changes[change](picture))
        # one person of the training split, another picture of him in test
        config = config_for(planted, tmp_path / "b", split=SplitConfig(by="official"))
        found = table(prepared(dataclasses.replace(config, data=DataConfig(
            "folder", str(planted), folder=FolderConfig(subject_pattern=r"[pq](\d\d)_")))), "leaks")
        assert (found.kind == "subject").sum() == len(people)
        assert (found.kind == "near_duplicate").sum() == len(people)
        # by subject of which nothing is known, the copies stay with what they are copies of
        safe = table(prepared(dataclasses.replace(config, split=SplitConfig())), "leaks")
        assert safe.empty


@pytest.mark.nodes
def test_a_killed_prepare_is_not_complete_and_goes_on_and_a_lost_node_changes_nothing(faces_root, tmp_path):
    big = tmp_path / "big"
    for name in ("happy", "sad"):
        (big / name).mkdir(parents=True)
    source = sorted(faces_root.rglob("*.tiff"))
    for number in range(350):  # links would leave the folder
        content_of = source[number % len(source)].read_bytes()
        (big / ("happy" if number % 2 else "sad") / f"s{number % 60}_{number}.tiff").write_bytes(content_of)
    options = ["--data.root", str(big), "--split.by", "image", "--name", "set", "--storage", str(tmp_path / "out")]
    folder = tmp_path / "out/prepared/set"
    with ray_on(2):
        process = subprocess.Popen(command("prepare", *options), cwd=tmp_path, env=joining(),
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.time() + 120
    while len(list(folder.glob("images/part-*.parquet"))) < 2 and time.time() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(1)  # the workers see that their driver is gone
    done = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.glob("images/part-*.parquet")}
    assert 2 <= len(done) < 16 and not (folder / "prepared.json").exists()
    again = run_job("prepare", *options, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in done} == done
    config = Config(name="set", storage=str(tmp_path / "lost"), data=DataConfig("auto", str(big)),
                    split=SplitConfig(by="image"))
    with nodes_of(1, 1) as (cluster, others), ThreadPoolExecutor(1) as aside:
        lost = aside.submit(lose_when, cluster, others[0],
                            lambda: list(tmp_path.glob("lost/prepared/set/images/part-*.parquet")))
        other = prepared(config)
        assert lost.result() < 16
    one, two = content(folder), content(other)
    assert one.keys() - {"prepare.html"} == two.keys()
    assert all(one[k] == two[k] for k in two if k.endswith(".parquet"))


def lose_when(cluster, node, condition) -> int:
    """End every process of a node once there is something; how much there was."""
    while not condition():
        time.sleep(0.02)
    cluster.remove_node(node, allow_graceful=False)
    return len(condition())


def test_audit_job_prints_what_leaks(faces_root, tmp_path):
    options = ["--data.root", str(faces_root), "--storage", str(tmp_path), "--name", "set"]
    done = run_job("prepare", *options, "--split.by", "image", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    audited = run_job("audit", *options, cwd=tmp_path)
    assert audited.returncode == 0, audited.stderr
    assert "ckplus:S005" in audited.stdout and audited.stdout.strip().endswith("prepared/set/prepare.html")
    assert "This split leaks" in Path(tmp_path / "prepared/set/prepare.html").read_text()
    missing = run_job("audit", "--storage", str(tmp_path / "nowhere"), cwd=tmp_path)
    assert missing.returncode == 1 and "no complete prepared set" in missing.stderr


def test_storage_that_refuses_a_worker_ends_the_job_in_one_line(faces_root, tmp_path):
    blocked = tmp_path / "prepared/set/images"
    blocked.parent.mkdir(parents=True)
    blocked.touch()  # no folder can be made there
    options = ["--data.root", str(faces_root), "--storage", str(tmp_path), "--name", "set"]
    failed = run_job("prepare", *options, cwd=tmp_path)
    assert failed.returncode == 1 and failed.stderr.strip() == f"error: {blocked}: Not a directory"
    assert not list(tmp_path.rglob("*.part"))
