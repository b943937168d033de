"""Long work shows a bar on a terminal and lines in a log; short work says nothing in a log."""

import io
import sys

import pytest

from fer_ray import progress
from fer_ray.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """The seconds that have gone by, as the tests set them."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def work_for(seconds: int, clock: list[float], **options) -> None:
    with Progress("crop", **options) as shown:
        for _ in range(seconds):
            clock[0] += 1
            shown.advance(50)


def test_a_log_gets_a_line_now_and_then(clock, capsys):
    work_for(50, clock, total=4000)
    shown = capsys.readouterr()
    assert shown.out.splitlines() == ["crop: 1,000 of 4,000 images, 50 images/s, 01:00 left",
                                      "crop: 2,000 of 4,000 images, 50 images/s, 00:40 left"]
    assert not shown.err


def test_what_an_earlier_run_did_is_no_part_of_the_rate(clock, capsys):
    work_for(20, clock, total=4000, done=2000)
    assert capsys.readouterr().out == "crop: 3,000 of 4,000 images, 50 images/s, 00:20 left\n"


def test_work_of_unknown_size_shows_its_rate(clock, capsys):
    work_for(20, clock, unit="files")
    assert capsys.readouterr().out == "crop: 1,000 files, 50 files/s\n"


def test_work_that_stands_still_is_no_division_by_zero(clock, capsys):
    with Progress("crop", total=5) as shown:
        clock[0] = 30
        shown.advance_to(0)
    assert capsys.readouterr().out == "crop: 0 of 5 images, 0.0 images/s\n"


def test_a_terminal_gets_a_bar_and_lines_go_above_it(monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("crop", total=4000) as shown:
        shown.advance(1000)
        progress.say("epoch 1")
        drawn = terminal.getvalue()
    assert "crop" in drawn and "1000/4000" in drawn and "images/s" in drawn
    assert capsys.readouterr().out == "epoch 1\n"
    assert not terminal.getvalue().split("\r")[-1].strip()  # wiped at the end
