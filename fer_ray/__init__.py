"""Facial expression recognition on Ray, from images to a report that can be trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fer_ray.use.recognizer import Recognizer as Recognizer

__version__ = "0.1.0"


def __getattr__(name: str):
    """Import `Recognizer` when it is asked for: whoever imports only a module of the package need not wait for it."""
    if name == "Recognizer":
        from fer_ray.use.recognizer import Recognizer

        return Recognizer
    raise AttributeError(f"module 'fer_ray' has no attribute {name!r}")
