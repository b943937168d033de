"""What a network says of a photograph: typed results, and the same as rows of a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from fer_ray.data.manifest import EXPRESSIONS, PROBABILITIES

if TYPE_CHECKING:
    import pandas as pd

# of a table with a row a face, and a row for each photograph without one
SCHEMA = pa.schema([("image", pa.string()), ("face", pa.int32()), ("expression", pa.string()),
                    *((column, pa.float32()) for column in PROBABILITIES), ("x", pa.int32()), ("y", pa.int32()),
                    ("width", pa.int32()), ("height", pa.int32()), ("score", pa.float32()), ("angle", pa.float32()),
                    ("whole", pa.bool_()), ("reason", pa.string())])


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
        found = [{"face": number, **face.row()} for number, face in enumerate(self.faces)] or [{"reason": self.reason}]
        return [dict.fromkeys(SCHEMA.names) | {"image": self.image} | row for row in found]

    def to_pandas(self) -> pd.DataFrame:
        """A table of `SCHEMA` with a row for each face, or one row with the reason why there is none."""
        return to_pandas(pa.Table.from_pylist(self.rows(), schema=SCHEMA))


class Recognitions(tuple[Recognition, ...]):
    """What was found in several photographs, in their order."""

    def to_pandas(self) -> pd.DataFrame:
        """The rows of all photographs, see `Recognition.to_pandas`."""
        return to_pandas(pa.Table.from_pylist([row for one in self for row in one.rows()], schema=SCHEMA))


def to_pandas(table: pa.Table) -> pd.DataFrame:
    """A table of `SCHEMA`. Whole numbers stay whole beside rows that have none."""
    import pandas as pd

    return table.to_pandas(types_mapper={pa.int32(): pd.Int32Dtype(), pa.bool_(): pd.BooleanDtype()}.get)
