"""What a network says of a photograph or of a frame of a video: typed results, and the same as rows of a table."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa

from fer_ray import storage
from fer_ray.data import manifest
from fer_ray.data.manifest import EXPRESSIONS, PROBABILITIES

if TYPE_CHECKING:
    import pandas as pd

# of a table with a row a face, and a row for each photograph without one
SCHEMA = pa.schema([("image", pa.string()), ("face", pa.int32()), ("expression", pa.string()),
                    *((column, pa.float32()) for column in PROBABILITIES), ("x", pa.int32()), ("y", pa.int32()),
                    ("width", pa.int32()), ("height", pa.int32()), ("score", pa.float32()), ("angle", pa.float32()),
                    ("whole", pa.bool_()), ("reason", pa.string())])

# of a table with a row for each face in each frame that was looked at, and a row for each such frame without one
FRAMES = pa.schema([("video", pa.string()), ("time", pa.float64()), *list(SCHEMA)[1:]])


class Network(Protocol):
    """What scores faces: `model.predictor.Predictor`, or whatever else runs an exported network."""

    batch_size: int
    """Crops of a forward pass that suit it."""
    shares_cpus: bool
    """Whether faces may be found beside a forward pass. Threads of torch on a CPU wait for each other by computing, so
    that both would take longer than one after the other."""

    def probabilities(self, crops: list[np.ndarray]) -> np.ndarray:
        """Calibrated probabilities, float32 [N, 8], of N crops, uint8 [256, 256] or [256, 256, 3] (RGB) each."""


@dataclass(frozen=True)
class Face:
    """One face and its expression."""

    box: tuple[int, int, int, int]
    """x, y, width, height in px of the photograph, as the detector found it; the network saw 20 % more about it."""
    score: float | None
    """How sure the detector is: with Haar the number of overlapping detections, with YuNet 0..1. None: no detector."""
    angle: float
    """Degrees, counterclockwise, by which the photograph was turned about its centre to find the face: 0 for upright
    ones. The box is then that of the turned face, about the same centre."""
    whole: bool
    """The photograph was used whole: a face fills it, or the network's `faces` options say so."""
    expression: str
    """The most probable expression."""
    probabilities: dict[str, float]
    """Of each of the eight expressions, calibrated; their sum is 1."""

    @classmethod
    def of(cls, box: tuple[int, int, int, int], score: float | None, angle: float, whole: bool,
           probabilities: np.ndarray) -> Face:
        """A face with the probabilities that the network gave its crop, float32 [8]."""
        return cls(box, score, angle, whole, EXPRESSIONS[int(probabilities.argmax())],
                   dict(zip(EXPRESSIONS, map(float, probabilities), strict=True)))

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Face:
        """The face that `row` was made of."""
        return cls((row["x"], row["y"], row["width"], row["height"]), row["score"], row["angle"], row["whole"],
                   row["expression"], {expression: row[f"p_{expression}"] for expression in EXPRESSIONS})

    def row(self) -> dict[str, Any]:
        """Its columns of a table."""
        x, y, width, height = self.box
        return {"expression": self.expression,
                **{f"p_{expression}": value for expression, value in self.probabilities.items()},
                "x": x, "y": y, "width": width, "height": height, "score": self.score, "angle": self.angle,
                "whole": self.whole}


@dataclass(frozen=True)
class Recognition:
    """What was found in one photograph."""

    image: str
    """Its path or URI; `#N` for the image at position N (from 0) of those that were given as bytes or pixels."""
    faces: tuple[Face, ...]
    """Every face, the largest first."""
    reason: str | None
    """Why there is no face: `no face found`, or what is wrong with the image. None if there is one."""

    @classmethod
    def from_rows(cls, rows: list[dict[str, Any]]) -> Recognition:
        """What `rows` was made of."""
        return cls(rows[0]["image"], tuple(Face.from_row(row) for row in rows if row["face"] is not None),
                   rows[0]["reason"])

    def rows(self) -> list[dict[str, Any]]:
        """A row of `SCHEMA` for each face, numbered from 0, or one row with the reason."""
        return _rows(SCHEMA, {"image": self.image}, enumerate(self.faces), self.reason)

    def to_pandas(self) -> pd.DataFrame:
        """A table of `SCHEMA` with a row for each face, or one row with the reason why there is none."""
        return to_pandas(pa.Table.from_pylist(self.rows(), schema=SCHEMA))


class Recognitions(tuple[Recognition, ...]):
    """What was found in several photographs, in their order."""

    def to_pandas(self) -> pd.DataFrame:
        """The rows of all photographs, see `Recognition.to_pandas`."""
        return to_pandas(pa.Table.from_pylist([row for one in self for row in one.rows()], schema=SCHEMA))


@dataclass(frozen=True)
class Frame:
    """What was found in one frame of a video."""

    video: str
    """Path or URI of the video."""
    time: float
    """Seconds after the video's first frame, when players show it."""
    faces: dict[int, Face]
    """Every face by its number, which it keeps as long as it is seen; the largest face first."""
    reason: str | None
    """Why there is no face. None if there is one."""

    @classmethod
    def from_rows(cls, rows: list[dict[str, Any]]) -> Frame:
        """What `rows` was made of."""
        return cls(rows[0]["video"], rows[0]["time"],
                   {row["face"]: Face.from_row(row) for row in rows if row["face"] is not None}, rows[0]["reason"])

    def rows(self) -> list[dict[str, Any]]:
        """A row of `FRAMES` for each face, or one row with the reason."""
        return _rows(FRAMES, {"video": self.video, "time": self.time}, self.faces.items(), self.reason)


def _rows(schema: pa.Schema, of: dict[str, Any], faces: Iterable[tuple[int, Face]],
          reason: str | None) -> list[dict[str, Any]]:
    """A row for each numbered face, or one with the reason. `of`: the columns that say where they were found."""
    found = [{"face": number, **face.row()} for number, face in faces] or [{"reason": reason}]
    return [dict.fromkeys(schema.names) | of | row for row in found]


def read_table(uri: str, schema: pa.Schema) -> pa.Table | None:
    """A table of `SCHEMA` or `FRAMES`, or a part of it; None if it is missing or damaged, and must be made again.

    Raises: storage.StorageError if storage does not answer, which says nothing of the table.
    """
    try:
        table = manifest.read_parquet(io.BytesIO(storage.read_bytes(uri)))
    except (FileNotFoundError, manifest.DataError, pa.ArrowException, OSError) as error:
        if isinstance(error, storage.StorageError):
            raise
        return None
    return table if table.schema.equals(schema) else None


def to_pandas(table: pa.Table) -> pd.DataFrame:
    """A table of `SCHEMA`. Whole numbers stay whole beside rows that have none."""
    import pandas as pd

    return table.to_pandas(types_mapper={pa.int32(): pd.Int32Dtype(), pa.bool_(): pd.BooleanDtype()}.get)
