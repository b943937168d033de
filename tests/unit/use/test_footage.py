"""Every kind of video that people have gives the frames that players show; what is damaged is left out and counted."""

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import s3
import videos

from fer_ray import storage
from fer_ray.use.footage import Footage, VideoError

CODECS = {".mp4": "libx264", ".mkv": "libx264", ".ts": "libx264", ".avi": "mpeg4", ".webm": "libvpx-vp9"}


def noise(frames: int, size: tuple[int, int] = (64, 96)) -> list[tuple[float, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [(n / 10, rng.integers(0, 255, (*size, 3), np.uint8)) for n in range(frames)]


def read(path: str | Path, start: float = 0.0) -> tuple[dict[float, np.ndarray], int]:
    """Pixels by time, in ms, and what was damaged."""
    with Footage(str(path)) as footage:
        return {round(still.time, 3): still.pixels() for still in footage.frames(start)}, footage.damaged


@pytest.fixture(scope="module", params=CODECS)
def film(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("film") / f"film{request.param}"
    return Path(videos.write(path, noise(35), CODECS[request.param],
                             **{"movflags": "faststart"} if request.param == ".mp4" else {}))


def test_a_part_of_a_video_has_the_pixels_of_the_whole(film):
    whole, damaged = read(film)
    assert list(whole) == [round(n / 10, 3) for n in range(35)] and not damaged
    part, _ = read(film, 1.7)
    assert list(part) == [time for time in whole if time >= 1.7]
    assert all((part[time] == whole[time]).all() for time in part)
    assert not read(film, 99.0)[0]


def test_a_damaged_tail_ends_the_video(film, tmp_path):
    whole, _ = read(film)
    content = film.read_bytes()
    length = int(len(content) * 0.6)
    cut = tmp_path / f"cut{film.suffix}"
    cut.write_bytes(content[:length])
    with av.open(str(film)) as container:
        left = sum(packet.pos is not None and packet.pos + packet.size <= length
                   for packet in container.demux(video=0) if packet.size)
    found, _ = read(cut)
    assert len(found) == left > 10  # every frame before the damage
    assert all((found[time] == whole[time]).all() for time in found)  # and none with grey or smeared blocks


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_a_frame_that_is_shown_before_a_damaged_one_may_refer_to_it(suffix, tmp_path):
    film = Path(videos.write(tmp_path / f"film{suffix}", videos.walk(2.0), CODECS[suffix]))
    whole, content = read(film)[0], film.read_bytes()
    with av.open(str(film)) as container:
        _, referred_to, shown_before, *_ = container.demux(video=0)
    assert referred_to.pts is not None and shown_before.pts is not None and referred_to.pos is not None
    assert referred_to.pts > shown_before.pts
    end = referred_to.pos + referred_to.size
    start = end - referred_to.size // 3
    film.write_bytes(content[:start] + b"\xff" * (end - start) + content[end:])
    found, damaged = read(film)
    assert list(found) == [time for time in whole if time == 0 or time >= 1] and damaged == 9
    assert all((found[time] == whole[time]).all() for time in found)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_damage_within_costs_the_frames_that_refer_to_it(suffix, tmp_path):
    film = Path(videos.write(tmp_path / f"film{suffix}", videos.walk(3.5), CODECS[suffix]))
    whole, content = read(film)[0], film.read_bytes()
    middle = len(content) // 2
    film.write_bytes(content[:middle] + bytes(200) + content[middle + 200 :])
    found, damaged = read(film)
    assert damaged and 20 < len(found) < 35
    assert {picture.tobytes() for picture in found.values()} <= {picture.tobytes() for picture in whole.values()}


def test_the_picture_is_turned_and_stretched_as_its_metadata_say(tmp_path):
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:32, :48] = 255  # white at the top left
    turned = videos.write(tmp_path / "turned.mp4", [(0.0, picture)], rotation=90)
    with Footage(turned) as footage:
        assert (footage.rotation, footage.width, footage.height) == (90, 64, 96)
        shown = next(footage.frames()).pixels()
    assert shown.shape == (96, 64, 3) and shown[80, 10].min() > 200 and shown[10, 10].max() < 50  # now at the bottom
    wide = videos.write(tmp_path / "wide.mkv", [(0.0, picture)], shape=Fraction(3, 2))
    with Footage(wide) as footage:
        assert (footage.width, footage.height, footage.rotation) == (144, 64, 0)


def test_times_are_those_of_a_variable_frame_rate(tmp_path):
    times = [0.0, 0.04, 0.5, 0.51, 2.0, 2.033]
    pictures = [picture for _, picture in noise(len(times))]
    for name in ("film.mp4", "film.mkv"):
        assert list(read(videos.write(tmp_path / name, zip(times, pictures, strict=True)))[0]) == times


def test_a_video_in_a_bucket_is_read_where_it_lies(tmp_path):
    film = videos.write(tmp_path / "film.mp4", noise(12))
    with s3.server() as port, s3.in_this_process(port):
        storage.write_bytes("s3://bucket/film.mp4", Path(film).read_bytes())
        whole, there = read(film)[0], read("s3://bucket/film.mp4")[0]
        assert list(there) == list(whole) and all((there[time] == whole[time]).all() for time in whole)
        with pytest.raises(VideoError, match="file not found"):
            Footage("s3://bucket/gone.mp4")


def test_storage_that_fails_is_no_damaged_video(tmp_path, monkeypatch):
    film = videos.write(tmp_path / "film.mkv", noise(40, (240, 320)))

    class Failing(io.FileIO):
        def readinto(self, buffer):
            if self.tell() > 600_000:
                raise OSError(5, "no answer")
            return super().readinto(buffer)

        def read(self, size=-1):
            if self.tell() > 600_000:
                raise OSError(5, "no answer")
            return super().read(size)

    monkeypatch.setattr(storage, "open_file", lambda uri: Failing(uri))
    with pytest.raises(storage.StorageError, match="film.mkv: no answer"):
        read(film)


def sound(path: Path) -> None:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=8000)
        for _ in range(4):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 8000
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def headless(path: Path) -> None:
    """The end of an MP4 file, which says where the frames lie, is missing."""
    videos.write(path, noise(5))
    path.write_bytes((content := path.read_bytes())[: content.index(b"moov") - 4])


def frameless(path: Path) -> None:
    """What says where the frames lie is all that is there."""
    content = Path(videos.write(path, noise(5), movflags="faststart")).read_bytes()
    path.write_bytes(content[: content.index(b"mdat") + 4])


@pytest.mark.parametrize(("make", "reason"), [
    (lambda path: path.write_bytes(b""), "empty file"),
    (lambda path: path.write_text("no video at all\n" * 50), "no video that FFmpeg can read"),
    (lambda path: path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/hostname\n"),
     "no video that FFmpeg can read"),
    (headless, "or its end is missing"),
    (sound, "sound alone"),
    (lambda path: videos.write(path, noise(1, (640, 640)), shape=Fraction(500)), "too large: 320000 x 640 px"),
    (frameless, "no frame of it can be decoded"),
    (lambda path: None, "file not found")])
def test_what_is_no_video_has_a_reason(tmp_path, make, reason):
    make(tmp_path / "film.mp4")
    with pytest.raises(VideoError, match=reason):
        Footage(str(tmp_path / "film.mp4"))
