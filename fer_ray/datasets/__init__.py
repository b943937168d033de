"""One file per layout on disk: folder in, manifest out."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

from fer_ray.config import DataConfig
from fer_ray.manifest import DataError, Manifest, merge


def read_manifest(data: DataConfig) -> Manifest:
    """The manifest of `data.sources` below `data.root`, or of `data.root` itself.

    Raises: DataError when a folder is missing or its content is not what the kind promises.
    """
    expanded = os.path.expanduser(os.path.expandvars(data.root))
    if not expanded or "$" in expanded:
        raise DataError(f"data.root: {data.root!r} is not set; give the data set's folder by --data.root")
    root = Path(expanded).resolve()
    sources = [(s.kind, root / s.root) for s in data.sources] or [(data.kind, root)]
    for kind, folder in sources:
        if kind != "sample" and not folder.is_dir():
            raise DataError(f"data.root: {folder} is not a folder; give the folder of the {kind} data set")
    found = merge([read_source(kind, folder, data) for kind, folder in sources])
    if not found.rows.num_rows:
        reasons = sorted(set(found.rejected.column("reason").to_pylist()))
        raise DataError(f"{root}: no usable image ({'; '.join(reasons) or 'nothing of this layout'})")
    return found


def read_source(kind: str, root: Path, data: DataConfig) -> Manifest:
    """The manifest of one folder of the layout `kind`."""
    adapter = importlib.import_module(f"fer_ray.datasets.{kind}")
    return adapter.read(root, data if kind == "sample" else getattr(data, kind, None))
