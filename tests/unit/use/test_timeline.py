"""The annotated copy of a video plays as the video does, and its page shows the course of each face."""

import dataclasses
import re

import av
import checkpoints as tiny
import cv2
import numpy as np
import pytest
import videos as drawn

from fer_ray.report import video_figures
from fer_ray.use import timeline, videos
from fer_ray.use.footage import Footage


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("checkpoint") / "c", temperature=1.5)


def test_the_copy_has_the_times_of_the_video_and_boxes_that_follow_the_face(checkpoint, tmp_path):
    times = [0.0, 0.1, 0.3, 0.35, 0.9, 1.0]
    place = {time: round(40 * time) for time in times}
    scenes = {time: drawn.scene([(drawn.face(), place[time], 20)], 241, 161) for time in times}  # H.264 has even sides
    film = drawn.write(tmp_path / "film.webm", scenes.items(), "libvpx-vp9")
    work = drawn.job(tmp_path / "out", [film], checkpoint, every=0.9)
    (made,) = drawn.make_parts(work)
    assert not timeline._is_there(made, 0.0)
    timeline._write_one(made, work)
    assert timeline._is_there(made, 0.0) and not timeline._is_there(made, 0.5)
    with Footage(f"{made.folder}/annotated.mp4") as copy:
        stills = {round(still.time, 3): still.pixels() for still in copy.frames()}
        assert list(stills) == times and (copy.width, copy.height) == (240, 160)
    changed = {time: np.abs(cv2.resize(scenes[time], (240, 160)).astype(int) - picture).max(2) > 15
               for time, picture in stills.items()}
    left = {time: np.flatnonzero(mask[60:100].sum(0) > 20)[0] for time, mask in changed.items()}  # side of the box
    assert left[0.3] - left[0.0] == pytest.approx(place[0.3], abs=5)  # that was not looked at
    page = (tmp_path / made.folder / "timeline.html").read_text()
    assert "film.webm: 1 face in 1.0 s" in page and 'src="annotated.mp4"' in page and "A frame every 0.9 s" in page
    assert "variable frame rate" in page and len(re.findall("data:image/jpeg", page)) == 2
    assert not re.search(r"(src|href)=\"https?:", page)


def test_a_box_goes_from_place_to_place_and_does_not_outstay_its_face():
    first, second = drawn.frame(1.0, [(0, 0), (300, 0)]), drawn.frame(2.0, [(100, 50)])
    places = {number: face.box[:2] for number, face in timeline.between(first, second, 1.25, 0.5).items()}
    assert places == {0: (25, 12), 1: (300, 0)}
    assert list(timeline.between(first, second, 1.75, 0.5)) == [0]
    assert list(timeline.between(second, None, 2.4, 0.5)) == [0] and not timeline.between(second, None, 2.6, 0.5)


def test_a_course_shows_gaps_and_averages_what_is_too_much():
    times = np.concatenate([np.arange(2000) / 10, 500 + np.arange(10) / 10])
    figure = video_figures.course_figure(times, np.full((len(times), 8), 1 / 8), 600.0, 1.0)
    areas = figure.axes[0].collections
    assert len(areas) == 8 and all(len(area.get_paths()) == 2 for area in areas)  # two stretches
    assert [video_figures.clock(t) for t in (0, 64.52, 3600)] == ["0:00.0", "1:04.5", "1:00:00.0"]


def test_a_video_without_faces_has_a_page(checkpoint, tmp_path):
    film = drawn.write(tmp_path / "empty.mp4", [(n / 10, drawn.scene([])) for n in range(4)])
    work = drawn.job(tmp_path / "out", [film], checkpoint)
    (made,) = drawn.make_parts(work)
    uncalibrated = dataclasses.replace(work, network=dataclasses.replace(work.network, temperature=None))
    timeline._write_one(made, uncalibrated)
    page = (tmp_path / made.folder / "timeline.html").read_text()
    assert "No face was found." in page and "not calibrated" in page
    with av.open(f"{made.folder}/annotated.mp4") as copy:
        assert sum(1 for _ in copy.decode(video=0)) == 4
    assert videos.notes(made) == []
