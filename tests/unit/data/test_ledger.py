"""Every file of a data set ends somewhere, on disk and in a bucket, and what nobody claims is told."""

import os

import pytest
import s3
from data_sets import GREY, put, read
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends

import fer_ray.s3
from fer_ray import storage
from fer_ray.data import ledger, listing, sources, walk
from fer_ray.data.manifest import DataError
from fer_ray.data_config import DataConfig, SourceConfig, TableConfig

JUNK = ("@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg", "System Volume Information/x.jpg", "$RECYCLE.BIN/S-1/x.jpg",
        ".Trashes/x.jpg", "#recycle/x.jpg", "__MACOSX/._x.jpg", "Thumbs.db", "Icon\r")


def accounted(root, **more):
    return sources.read_manifest(DataConfig(root=str(root), **more), "image").ledger


def total(found):
    return sum((found["images"], found["rejected"], found["read"], *found["unused"].values(), found["pictures"],
                *found["other"].values()))


# --- pictures that nobody claims -------------------------------------------------------------------------


def test_pictures_of_no_data_set_are_an_error_that_names_their_folders(tmp_path):
    put(tmp_path / "jaffe/KA.AN1.39.png"), put(tmp_path / "jaffe/more/KA.HA1.29.png")
    for name in ("suprise/1.png", "suprise/2.png", "holiday/3.png"):
        put(tmp_path / "album" / name)
    with pytest.raises(DataError, match=r"3 picture files belong to no data set.*album/holiday \(1, such as 3.png\), "
                                        r"album/suprise \(2, such as 1.png; suprise -> surprise\?\).*names.*report"):
        read(tmp_path, "jaffe")
    found = accounted(tmp_path, kind="jaffe", unclaimed="report")
    assert found["images"] == 2 and found["pictures"] == 3 and found["files"] == 5


def test_a_misspelt_class_of_a_second_set_is_named(tmp_path):
    for name in ("A/angry", "A/happy", "A/sad", "B/angry", "B/happy", "B/suprise"):
        put(tmp_path / name / "1.png")
    with pytest.raises(DataError, match="B/suprise: unknown expression 'suprise' .did you mean 'surprise'.*data.names"):
        read(tmp_path)


def test_other_files_are_counted_and_the_line_says_all(tmp_path):
    put(tmp_path / "happy/a.png"), put(tmp_path / "sad/b.png")
    (tmp_path / "README").touch(), (tmp_path / "list.csv").write_text("x,y\n"), (tmp_path / "sad/c.txt").touch()
    (tmp_path / ".DS_Store").touch()
    found = accounted(tmp_path)
    assert ledger.line(found) == ("5 files = 2 with images + 1 rejected + 2 others (.csv 1, without extension 1); "
                                  "1 entry of systems or of this program, passed over")


def test_a_layout_that_invents_a_file_is_stopped(tmp_path):
    put(tmp_path / "happy/a.png")
    reading = ledger.Reading([{"image": str(tmp_path / "happy/none.png")}], [])
    with pytest.raises(AssertionError, match="none.png was claimed and is not there"):
        ledger.balance([listing.of(tmp_path)], [reading])


# --- what is passed over ---------------------------------------------------------------------------------


def test_what_systems_and_this_program_leave_is_no_picture(tmp_path):
    put(tmp_path / "happy/a.png"), put(tmp_path / "sad/b.png")
    for name in (*JUNK, "happy/@eaDir/a.png/SYNOPHOTO_THUMB_XL.jpg", "out/prepared/set/images/part-00000-ab.parquet",
                 "out/prepared/set/prepared.json", "out/predictions/p/annotated/1.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = accounted(tmp_path)
    assert (found["files"], found["images"], found["junk"]) == (2, 2, len(JUNK) + 3)


def test_links_of_hugging_faces_cache_are_followed_and_no_other_that_leave(tmp_path):
    cache, outside = tmp_path / "datasets--me--faces", put(tmp_path / "secret.png")
    for number in range(2):
        os.makedirs(cache / "blobs", exist_ok=True)
        os.rename(put(tmp_path / "x.png"), cache / f"blobs/{number}ab")
        (cache / "snapshots/abc/happy").mkdir(parents=True, exist_ok=True)
        os.symlink(f"../../../blobs/{number}ab", cache / f"snapshots/abc/happy/{number}.png")
    os.symlink(outside, cache / "snapshots/abc/happy/out.png")
    for root in (cache / "snapshots/abc", cache):
        rows, rejected = read(root)
        assert len(rows) == 2 and list(rejected.reason) == ["path leaves the data set's folder"]


def test_links_to_folders_are_followed_inside_and_end_in_a_loop(tmp_path):
    put(tmp_path / "happy/a.png"), put(tmp_path / ".store/b.png")
    os.symlink("../.store", tmp_path / "happy/linked")
    os.symlink("..", tmp_path / "happy/loop")
    rows, rejected = read(tmp_path)
    assert len(rows) == 2 and list(rejected.reason) == [walk.LOOP]


# --- mixtures --------------------------------------------------------------------------------------------

SETS = {"jaffe": ("KA.AN1.39.png", "KL.HA1.29.png", "note.txt"),
        "CK+48": ("anger/S010_004_00000017.png", "happy/S011_004_00000017.png", "happy/x.txt"),
        "fer": ("train/angry/1.jpg", "train/happy/2.jpg", "test/angry/3.jpg", "test/happy/4.jpg"),
        "CK+": ("cohn-kanade-images/S005/001/S005_001_00000001.png",
                "cohn-kanade-images/S005/001/S005_001_00000009.png",
                "Emotion/S005/001/S005_001_00000009_emotion.txt", "Landmarks/S005/001/S005_001_00000001_landmarks.txt"),
        "csv": ("fer2013.csv",)}
TEXTS = {"S005_001_00000009_emotion.txt": "3.0", "fer2013.csv": f"emotion,pixels,Usage\n0,{GREY},Training\n"}
EXTRA = ("README.md", "photo.png", "x/y/z.jpg", "notes/a.mat", "happy.jpg", "train/readme.txt")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(st.sampled_from(sorted(SETS)), min_size=1), st.sets(st.sampled_from(EXTRA)),
       st.sets(st.sampled_from(JUNK)))
def test_of_any_mixture_all_files_are_accounted_for(tmp_path_factory, sets, extra, junk):
    root = tmp_path_factory.mktemp("mixture")
    names = [f"{name}/{file}" for name in sets for file in SETS[name]] + list(extra)
    for name in (*names, *junk):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(TEXTS.get(os.path.basename(name), ""))
    found = accounted(root, unclaimed="report")
    assert total(found) == found["files"] == len(names)
    assert found["junk"] == len({name.split("/")[0] for name in junk})
    pictures = sum(listing.is_image(name) for name in names)
    assert pictures == found["images"] + found["rejected"] + found["pictures"] - sum(
        name.endswith("x.txt") for name in names)  # a text in the folder of a class is rejected too


# --- in a bucket -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bucket():
    with s3.server() as port, s3.in_this_process(port):
        yield "s3://bucket"


def upload(root, uri):
    for file in root.rglob("*"):
        if file.is_file():
            storage.write_bytes(f"{uri}/{file.relative_to(root)}", file.read_bytes())


def test_a_bucket_gives_the_manifest_of_a_folder_but_for_uris_and_times(tmp_path, bucket):
    for name, files in SETS.items():
        for file in files:
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_text(TEXTS.get(os.path.basename(file), "x"))
    (tmp_path / ".DS_Store").touch()
    upload(tmp_path, f"{bucket}/mixed")
    local, remote = (sources.read_manifest(DataConfig(root=root), "image")
                     for root in (str(tmp_path), f"{bucket}/mixed"))
    assert local.ledger == remote.ledger
    for one, other in ((local.rows, remote.rows), (local.rejected, remote.rejected)):
        one, other = (table.drop_columns([c for c in ("file_mtime_ns",) if c in table.schema.names]).to_pandas()
                      for table in (one, other))
        assert other.assign(image=other.image.str.replace(f"{bucket}/mixed", str(tmp_path), regex=False)).equals(one)


def test_images_in_a_bucket_are_indexed_without_a_request_for_each(bucket):
    number = 1050  # more than a page of a listing
    server = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]  # a request for each would take ten seconds
    for image in range(number):
        server.put_object("bucket", f"many/{('happy', 'sad')[image % 2]}/{image}.jpg", b"x")
    asked = []
    client = fer_ray.s3._client()
    client.meta.events.register("before-send.s3", lambda request, **_: asked.append(request.url))
    found = sources.read_manifest(DataConfig(root=f"{bucket}/many"), "image")
    assert found.rows.num_rows == number
    assert len(asked) <= number / 500 + 5, asked
    assert sum("list-type=2" in url for url in asked) >= 2 and not any(".jpg" in url.split("?")[0] for url in asked)


def test_tables_images_and_exclusions_may_lie_in_a_bucket(tmp_path, bucket):
    put(tmp_path / "elsewhere/a.png"), put(tmp_path / "elsewhere/b.png")
    (tmp_path / "t.csv").write_text("image,expression\na.png,fear\nb.png,sad\n")
    upload(tmp_path / "elsewhere", f"{bucket}/photos")
    storage.write_bytes(f"{bucket}/set/t.csv", (tmp_path / "t.csv").read_bytes())
    storage.write_bytes(f"{bucket}/out.csv", f"image,reason\n{bucket}/photos/a.png,blurred\n".encode())
    table = TableConfig(images=f"{bucket}/photos")
    for data in (DataConfig("table", f"{bucket}/set", table=table, exclude=f"{bucket}/out.csv"),
                 DataConfig(root=str(tmp_path), sources=[SourceConfig("table", f"{bucket}/set")], table=table)):
        rows = sources.read_manifest(data, "image").rows.to_pandas()
        assert list(rows.image) == [f"{bucket}/photos/a.png", f"{bucket}/photos/b.png"]
    with pytest.raises(DataError, match="s3://bucket/none is not a folder"):
        read(f"{bucket}/none")
