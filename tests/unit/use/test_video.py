"""Faces followed through a video: the same whether it is read in one piece or in many."""

import checkpoints as tiny
import numpy as np
import pytest
import videos

from fer_ray import Recognizer
from fer_ray.use import footage, tracks, video
from fer_ray.use.recognition import Frame


@pytest.fixture(scope="module")
def recognizer(tmp_path_factory):
    return Recognizer.load(tiny.write(tmp_path_factory.mktemp("checkpoint") / "c", temperature=1.5))


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return videos.write(tmp_path_factory.mktemp("film") / "film.mp4", videos.walk(2.0))


def places(frames) -> list[dict[int, int]]:
    return [{number: face.box[0] for number, face in one.faces.items()} for one in frames]


def test_a_face_keeps_its_number_until_it_was_away_for_long():
    steps = [(0.0, [0, 300]), (0.2, [310, 20]), (0.4, [320]), (0.8, [330, 40]), (1.0, [340]), (2.2, [350, 50])]
    found = places(tracks.follow((videos.frame(time, [(x, 0) for x in xs]) for time, xs in steps), 0.2, 0.0))
    assert found == [{0: 0, 1: 300}, {1: 310, 0: 20}, {1: 320}, {1: 330, 0: 40}, {1: 340}, {2: 350, 3: 50}]


def test_two_faces_are_numbered_by_the_most_overlap_of_both():
    """Box by box, the first would take the place of the second."""
    found = places(tracks.follow([videos.frame(0, [(0, 0), (60, 0)]), videos.frame(1, [(40, 0), (110, 0)])], 1.0, 0.0))
    assert found[1] == {0: 40, 1: 110}
    assert places(tracks.follow([videos.frame(0, []), videos.frame(1, [])], 1.0, 0.0)) == [{}, {}]


def test_probabilities_are_smoothed_by_seconds_for_each_face():
    steps = [videos.frame(0.0, [(0, 0)], 0.0), videos.frame(0.5, [(0, 0), (300, 0)], 1.0),
             videos.frame(1.5, [(0, 0)], 1.0)]
    faces = [one.faces for one in tracks.follow(steps, 0.5, 1.0)]
    kept = np.exp(-0.5)
    assert faces[1][0].probabilities["anger"] == pytest.approx(1 - kept)
    assert faces[1][1].probabilities["anger"] == 1  # its first
    assert faces[2][0].probabilities["anger"] == pytest.approx(1 - kept * np.exp(-1.0))
    assert faces[2][0].expression == "anger" and faces[0][0].expression == "contempt"


@pytest.mark.parametrize("every", [0.0, 0.04, 0.2, 0.3, 1.0, 1.7, 100.0])
def test_searches_and_segments_begin_with_a_slot(every):
    grid = video.Grid(every, 60.0)
    for segment in (0, 1, 2, 7):
        begin = grid.begin(segment)
        assert grid.segment(begin) == segment and (segment == 0 or grid.segment(begin - 0.001) == segment - 1)
        assert grid.search(begin) > grid.search(begin - 0.001) and grid.slot(begin) > grid.slot(begin - 0.001)
    assert max(every, 30) <= grid.begin(1) <= max(every, 60) + 0.001


def test_frames_are_looked_at_so_often_and_one_face_has_one_number(recognizer, film):
    frames = list(recognizer.video(film, every=0.3))
    assert [round(one.time, 3) for one in frames] == [0.0, 0.3, 0.6, 0.9, 1.2, 1.5, 1.8]
    assert all(list(one.faces) == [0] for one in frames)
    places = [one.faces[0].box[0] for one in frames]
    assert places == sorted(places) and places[-1] - places[0] > 40
    whole = recognizer(next(footage.Footage(film).frames()).pixels())
    assert [face.box for face in whole.faces] == [face.box for face in frames[0].faces.values()]
    assert whole.faces[0].probabilities == pytest.approx(frames[0].faces[0].probabilities, abs=1e-5)


def test_a_video_in_pieces_gives_the_same_as_in_one(recognizer, film):
    grid = video.Grid(0.1, 1.0)

    def score(*segment) -> list[Frame]:
        with footage.Footage(film) as opened:
            return list(video.score(opened, recognizer.cutter, recognizer.network, grid, video.Seen(), segment))

    whole = score(0, None)
    parts = [score(0, 1), score(1, None)]
    assert [len(part) for part in parts] == [10, 10] and len(whole) == 20
    for one, other in zip(whole, sum(parts, []), strict=True):
        assert (one.time, one.faces.keys(), one.reason) == (other.time, other.faces.keys(), other.reason)
        for face, same in zip(one.faces.values(), other.faces.values(), strict=True):
            assert face.box == same.box
            assert list(face.probabilities.values()) == pytest.approx(list(same.probabilities.values()), abs=1e-5)


def test_frames_without_a_face_say_so_and_faces_that_come_are_found(recognizer, tmp_path):
    empty, one = videos.scene([]), videos.scene([(videos.face(), 20, 20)])
    pair = videos.scene([(videos.face(), 20, 20), (videos.face("fear", 1), 130, 20)])
    pictures = [empty] * 3 + [one] * 4 + [pair] * 7
    film = videos.write(tmp_path / "come.mkv", ((n / 10, picture) for n, picture in enumerate(pictures)))
    frames = list(recognizer.video(film, every=0.1))
    assert [one.reason for one in frames[:4]] == ["no face found"] * 3 + [None]
    assert set(frames[6].faces) == {0} and set(frames[10].faces) == {0, 1}  # by the next search of the whole frame


def test_what_is_damaged_or_no_video_is_told(recognizer, tmp_path):
    film = tmp_path / "film.mp4"
    videos.write(film, videos.walk(2.0), movflags="faststart")
    film.write_bytes(film.read_bytes()[:-1000])
    with pytest.warns(UserWarning, match="film.mp4: 1 damaged"):
        assert len(list(recognizer.video(film, every=0))) == 10  # of 20; after the damaged one the file ends
    with pytest.raises(footage.VideoError, match="file not found"):
        recognizer.video(tmp_path / "gone.mp4")  # at once, and not when its first frame is asked for
    with pytest.raises(ValueError, match="must not be negative"):
        recognizer.video(film, every=-1)
