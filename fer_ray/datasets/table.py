"""A table of image names and labels beside a folder of images."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from fer_ray.config import TableConfig
from fer_ray.manifest import DataError, Manifest, build, canonical_expression


def read(root: Path, options: TableConfig) -> Manifest:
    """One row an image. A name listed twice counts once; with two different labels it is rejected.

    Raises: DataError for a missing table, column or image folder, or an unknown label.
    """
    file = _find(root, options.file)
    table = _load(file)
    for column in filter(None, (options.image_column, options.expression_column, options.subject_column)):
        if column not in table:
            raise DataError(f"{file}: no column {column!r}; its columns are {', '.join(map(str, table.columns))}")
    folder = (root / options.images).resolve()
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder (data.table.images)")
    pattern = _pattern(options.subject_pattern)
    labels: dict[str, list[str]] = {}
    subjects: dict[str, str | None] = {}
    for number, row in enumerate(table.to_dict("records"), start=2):  # as an editor counts: line 1 is the header
        name = str(row[options.image_column])
        expression = canonical_expression(row[options.expression_column], f"{file} row {number}")
        labels.setdefault(name, []).append(expression)
        subjects[name] = _subject(name, row, options, pattern)
    rows, rejected = [], []
    for name, found in labels.items():
        path = (folder / name).resolve()
        def reject(reason: str, count: int = 1, path: Path = path) -> None:
            rejected.extend([{"image": str(path), "dataset": "table", "reason": reason}] * count)

        if not path.is_relative_to(folder):
            reject("path leaves the image folder", len(found))
        elif len(set(found)) > 1:
            reject(f"conflicting labels: {', '.join(sorted(set(found)))}", len(found))
        elif not path.is_file():
            reject("file not found", len(found))
        else:
            reject("listed twice", len(found) - 1)
            rows.append({"image": str(path), "expression": found[0], "subject": subjects[name], "dataset": "table"})
    return build(rows, rejected)


def _find(root: Path, file: str) -> Path:
    if file:
        if not (root / file).is_file():
            raise DataError(f"{root / file}: no such table (data.table.file)")
        return root / file
    found = sorted(p for pattern in ("*", "*/*") for p in root.glob(pattern) if p.suffix in (".csv", ".parquet"))
    if len(found) != 1:
        raise DataError(f"{root}: {len(found)} CSV or Parquet files; name the right one by data.table.file")
    return found[0]


def _load(file: Path) -> pd.DataFrame:
    try:
        # as text: a name such as 007 or NA stays what it is
        return pd.read_parquet(file) if file.suffix == ".parquet" else pd.read_csv(file, dtype=str, na_filter=False)
    except (ValueError, OSError) as error:
        raise DataError(f"{file}: not a readable table ({error})") from None


def _pattern(pattern: str) -> re.Pattern | None:
    if not pattern:
        return None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise DataError(f"data.table.subject_pattern: {pattern!r} is no regular expression ({error})") from None
    if compiled.groups != 1:
        raise DataError(f"data.table.subject_pattern: {pattern!r} needs exactly one group, it has {compiled.groups}")
    return compiled


def _subject(name: str, row: dict, options: TableConfig, pattern: re.Pattern | None) -> str | None:
    """Who is in the image; spelled in one case, since file names mix cases."""
    if options.subject_column:
        found = str(row[options.subject_column])
    else:
        match = pattern.match(Path(name).name) if pattern else None
        found = match[1] if match else ""
    return f"table:{found.casefold()}" if found else None
