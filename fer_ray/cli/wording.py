"""Counts as the jobs print them: in words, one fact a line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import pandas as pd

from fer_ray.data.manifest import printable

MOST_NOTES = 10
MOST_NAMES = 10
MOST_REASONS = 3  # a line for each of thousands of damaged files says no more than the first ones
SPLITS = {"subject": ", split by person", "sequence": ", split by video sequence", "image": ", split by image",
          "official": ", split as the data set itself is", "test": ", none for training"}
LEAKS = {"subject": ("person", "people"), "sequence": ("video sequence", "video sequences"),
         "identical": ("identical picture", "identical pictures"),
         "near_duplicate": ("near-duplicate", "near-duplicates")}


def count(number: int, singular: str, plural: str = "") -> str:
    """A number with its noun: "1 image", "1,200 images"."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def prepared(summary: dict) -> list[str]:
    """What a prepared set holds, in lines.

    Args:
        summary: the content of its `prepared.json`.
    """
    images = Counter()
    for splits in summary["counts"]["after"].values():
        for split, expressions in splits.items():
            images[split] += sum(expressions.values())
    lines = [f"{count(images.total(), 'image')}{SPLITS[summary['split']]}: {listed(images)}"]
    if summary["rejected"]:
        number = sum(summary["rejected"].values())
        lines.append(f"{count(number, 'image')} rejected: {reasons(summary['rejected'])}")
    return [*lines, *map(printable, summary["faces"]), leaks(summary["leaks"]), *summary["remarks"],
            *map(printable, summary["unseen"]), *warnings(summary["shortcuts"])]


def warnings(shortcuts: Mapping) -> list[str]:
    """The warning of a shortcut audit, if there is one. `shortcuts`: of `data.shortcuts.audit`."""
    return [f"warning: {printable(shortcuts['warning'])}"] if shortcuts["warning"] else []


def scored_elsewhere(other: Mapping) -> list[str]:
    """The scores of a further data set, and what of it was left out, in lines. `other`: of `evaluation.evaluate`."""
    scores = other["metrics"]
    lines = [f"on {other['name']}: no image is left to score"]
    if scores:
        lines = [f"on {other['name']}: balanced accuracy {scores['balanced_accuracy']:.3f} (chance "
                 f"{scores['chance']:.3f}), accuracy {scores['accuracy']:.3f}, "
                 f"{count(scores['test_images'], 'image')}"]
    lines += [f"    {count(number, 'image')} left out: {why}" for why, number in other["left_out"].items() if number]
    if other["people_seen"]:
        lines.append(f"    seen in training: {some(other['people_seen'])}")
    if other["codes_shared"]:
        lines.append(f"    {count(len(other['codes_shared']), 'person', 'people')} with codes that people of training "
                     f"have too count as others: {some(other['codes_shared'])}")
    return lines


def some(names: list[str]) -> str:
    """The first names, and how many others there are."""
    shown = ", ".join(map(printable, names[:MOST_NAMES]))
    return f"{shown} and {len(names) - MOST_NAMES:,} more" if len(names) > MOST_NAMES else shown


def leaks(number_of: Mapping[str, int]) -> str:
    """What stands in more than one split, in a line.

    Args:
        number_of: leaks of each kind, as `prepared.json` has them.
    """
    found = [count(number, *LEAKS[kind]) for kind, number in number_of.items() if number]
    return f"in more than one split: {', '.join(found)}" if found else "nothing is in more than one split"


def predictions(table: pd.DataFrame) -> str:
    """How many faces were given each expression, and why images have none, in a line.

    Args:
        table: a row a face with `expression`, and a row with `reason` for each image without one; both with `image`.
    """
    faces, missing = table["expression"].value_counts().to_dict(), table["reason"].dropna().value_counts().to_dict()
    line = f"{count(table['image'].nunique(), 'image')}, {count(sum(faces.values()), 'face')}"
    line += f": {listed(faces)}" if faces else ""
    return f"{line}; {sum(missing.values()):,} without a face: {reasons(missing)}" if missing else line


def found(photographs: int, videos: int, others: Mapping[str, int]) -> str:
    """What lies at the place to predict, in a line. `others`: files that are not read, by extension."""
    line = ", ".join(count(number, noun) for number, noun in ((photographs, "photograph"), (videos, "video")) if number)
    rest = sum(others.values())
    return f"{line} found; {count(rest, 'other file')} not read: {listed(others)}" if rest else f"{line} found"


def videos(table: pd.DataFrame) -> list[str]:
    """What was read of videos, in lines. `table`: videos.csv."""
    reasons_of, notes = table["reason"].dropna(), table[table["note"].notna()]
    line = (f"{count(len(table), 'video')}, {table['seconds'].sum():,.1f} s, "
            f"{count(int(table['looked_at'].sum()), 'frame')} looked at of {int(table['frames'].sum()):,}, "
            f"{count(int(table['faces'].sum()), 'face')} followed")
    if len(reasons_of):
        line += f"; {len(reasons_of):,} not readable: {reasons(reasons_of.value_counts().to_dict())}"
    shown = [f"{printable(name)}: {note}" for name, note in zip(notes["video"], notes["note"], strict=True)]
    return [line, *shortened(shown, "notes in videos.csv")]


def shortened(lines: list[str], what: str) -> list[str]:
    """The first lines, and how many there are more."""
    more = len(lines) - MOST_NOTES
    return [*lines[:MOST_NOTES], *([f"{more:,} more {what}"] if more > 0 else [])]


def listed(numbers: Mapping[str, int]) -> str:
    """Names with their numbers: "train 150, val 22"."""
    return ", ".join(f"{name} {number:,}" for name, number in numbers.items())


def reasons(numbers: Mapping[str, int]) -> str:
    """The most frequent reasons, each with its number, and how many others there are."""
    frequent = Counter(numbers).most_common()
    shown = ", ".join(f"{printable(reason)} ({number:,})" for reason, number in frequent[:MOST_REASONS])
    others = sum(number for _, number in frequent[MOST_REASONS:])
    return f"{shown}, other reasons ({others:,})" if others else shown


def settings(values: Mapping[str, float | str]) -> str:
    """Names and values of a trial's settings: "lr 0.01, momentum 0.9"."""
    return ", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                     for name, value in values.items())


def say(stage: str, lines: Iterable[str]) -> None:
    """Print lines, each after the name of the stage that they are about."""
    for line in lines:
        print(f"{stage}: {line}", flush=True)
