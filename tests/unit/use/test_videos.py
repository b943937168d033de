"""Videos to tables, without Ray: what workers write is joined, and every video is accounted for."""

import checkpoints as tiny
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import videos as drawn

from fer_ray import Recognizer
from fer_ray.cli import wording
from fer_ray.data.manifest import PROBABILITIES
from fer_ray.use import video, videos
from fer_ray.use.recognition import FRAMES


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("checkpoint") / "c", temperature=1.5)


def test_a_video_cut_into_segments_gives_the_table_of_the_whole(checkpoint, tmp_path, monkeypatch):
    film = drawn.write(tmp_path / "film.mp4", drawn.walk(2.5))
    monkeypatch.setattr(videos, "SEGMENT_S", 1.0)
    work = drawn.job(tmp_path / "out", [film], checkpoint, smooth=0.5)
    (made,) = drawn.make_parts(work)
    assert made.segments == 3 and videos.predict(work) == [made]  # without Ray, since all parts are there
    table = pq.read_table(tmp_path / "out/frames.parquet")
    assert table.schema.equals(FRAMES)
    found, text = table.to_pandas(), pd.read_csv(work.table)
    assert text.shape == found.shape and (text["time"] - found["time"]).abs().max() < 1e-9
    assert found["time"].tolist() == pytest.approx([n / 5 for n in range(13)])
    expected = list(Recognizer.load(checkpoint).video(film, 0.2, 0.5))
    assert found["face"].tolist() == [0] * 13 and found["x"].tolist() == [one.faces[0].box[0] for one in expected]
    assert np.abs(found[PROBABILITIES].to_numpy() - [list(one.faces[0].probabilities.values())
                                                     for one in expected]).max() <= 1e-5
    told = pd.read_csv(tmp_path / "out/videos.csv").iloc[0]
    assert (told["frames"], told["looked_at"], told["faces"], told["damaged"], told["seconds"]) == (25, 13, 1, 0, 2.4)
    assert pd.isna(told["note"]) and pd.isna(told["reason"])


def test_every_video_is_accounted_for(checkpoint, tmp_path):
    picture = drawn.scene([(drawn.face(), 20, 20)])
    drawn.write(tmp_path / "turned.mp4", [(0.0, np.ascontiguousarray(np.rot90(picture)))], rotation=-90)
    drawn.write(tmp_path / "uneven.mkv", [(time, picture) for time in (0.0, 0.1, 0.5, 0.6)])
    cut = tmp_path / "cut.mp4"
    drawn.write(cut, drawn.walk(3.0), movflags="faststart")
    cut.write_bytes(cut.read_bytes()[: int(0.6 * cut.stat().st_size)])
    (tmp_path / "text.mp4").write_text("no video")
    work = drawn.job(tmp_path / "out", sorted(tmp_path.glob("*.m*")), checkpoint, every=0.5)
    drawn.make_parts(work)
    videos.predict(work)
    told = pd.read_csv(tmp_path / "out/videos.csv")
    note = {row["video"].rsplit("/", 1)[-1]: row["note"] for _, row in told.iterrows()}
    assert "damaged frames left out" in note["cut.mp4"] and "s of the 3.0 s that its head declares" in note["cut.mp4"]
    assert note["turned.mp4"] == "turned by -90 degrees, as its metadata say"
    assert note["uneven.mkv"] == "variable frame rate, 100 to 400 ms between frames"
    table = pd.read_csv(work.table)
    unread = table[table["video"].str.endswith("text.mp4")]
    assert len(unread) == 1 and unread["time"].isna().all()
    assert unread["reason"].iloc[0].startswith("no video that FFmpeg can read")
    (face,) = table[table["video"].str.endswith("turned.mp4")].to_dict("records")
    assert face["face"] == 0 and (face["x"] < 60) and (face["y"] < 80)  # found upright, in the picture that is shown
    lines = wording.videos(told)
    assert lines[0].startswith("4 videos, ") and "1 not readable: no video that FFmpeg can read" in lines[0]
    assert len(lines) == 4


def test_other_videos_options_and_networks_are_others(checkpoint, tmp_path):
    film = drawn.write(tmp_path / "a film.mp4", drawn.walk(0.2))
    other = tiny.write(tmp_path / "other", temperature=2.0)

    def folder(work: videos.Job) -> str:
        return videos._open(work)[0].folder

    first = folder(drawn.job(tmp_path / "out", [film], checkpoint))
    assert first.startswith(f"{tmp_path}/out/videos/a_film-")
    assert first == folder(drawn.job(tmp_path / "out", [film], checkpoint, smooth=1.0, device="cuda"))
    assert len({first, folder(drawn.job(tmp_path / "out", [film], other)),
                folder(drawn.job(tmp_path / "out", [film], checkpoint, every=1.0))}) == 3
    (told,) = videos._open(drawn.job(tmp_path / "out", ["/etc/x.mp4"], checkpoint, reason="path leaves"))
    assert (told.segments, told.reason) == (0, "path leaves")  # and it is not opened


@pytest.mark.parametrize(("cluster", "device", "workers", "share"), [
    ({"CPU": 1}, "cpu", 1, 0), ({"CPU": 4}, "cpu", 2, 0), ({"CPU": 16, "GPU": 1}, "cuda", 8, 1 / 8),
    ({"CPU": 6, "GPU": 2}, "cuda", 3, 1 / 2), ({"CPU": 4, "GPU": 8}, "cuda", 2, 1)])
def test_workers_share_the_gpus(tmp_path, cluster, device, workers, share):
    options = videos.worker_options(cluster, drawn.job(tmp_path, [], device=device))
    assert (options["compute"].max_size, options["num_gpus"]) == (workers, share)
    assert video.Grid(0.2, videos.SEGMENT_S) == options["fn_constructor_kwargs"]["grid"]
