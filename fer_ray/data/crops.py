"""What workers do to images: find the face, cut it out, and write the crops of a part of the prepared set."""

from __future__ import annotations

import functools
import hashlib
import socket

import cv2
import numpy as np
import pyarrow as pa

from fer_ray import storage
from fer_ray.config import to_dict
from fer_ray.data import duplicates, faces, pixels, prepared_set, provenance, shortcuts
from fer_ray.data_config import FacesConfig

VERSION = 6  # another way to cut or hash crops makes another number
NO_FACE = "no face found"


def made_with(config: FacesConfig) -> dict:
    """What a part says of how its crops were made."""
    return {"version": VERSION, "faces": to_dict(config)}


@functools.cache  # once per process: reading the cascade takes 11-30 ms
def _finder(config: FacesConfig):
    cv2.setNumThreads(1)  # the tasks are the parallelism
    return faces.finder(config)


def crop_parts(batch: dict, uri: str, config: FacesConfig) -> dict:
    """Write the parts of `batch`, as `provenance.plan` lists them.

    Returns: of each its `part` (number), its `name`, how many crops are `new`, and the id of the `node` that made them.
    """
    import ray

    names, new = [], []
    for number, images in zip(batch["part"], batch["images"], strict=True):
        table = _make_part([_plain(image) for image in images], uri, config)
        names.append(prepared_set.write_part(uri, int(number), table))
        new.append(sum(not image["kept_in"] for image in images))
    node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""
    return {"part": batch["part"], "name": np.array(names), "new": np.array(new), "node": np.array([node] * len(new))}


def _make_part(images: list[dict], uri: str, config: FacesConfig) -> pa.Table:
    """The table of a part. Crops that lie in other parts are taken from there."""
    schema = provenance.schema(made_with(config))
    kept: dict[str, pa.Table] = {}
    rows = []
    for image in images:
        if name := image["kept_in"]:
            if name not in kept:
                kept[name] = prepared_set.read_whole_part(uri, name)
            rows += kept[name].slice(image["part_row"], 1).to_pylist()
        else:
            row, reason, content = crop_image(image, config)
            rows.append({"content": content, "face": image["face"], "cropped": bool(image["cropped"]),
                         "reason": reason or None, **(row or {})})
    return pa.Table.from_pylist(rows, schema=schema)


def _plain(image: dict) -> dict:
    """An image without NumPy's types, which Ray Data makes of lists."""
    face, cropped = image["face"], image["cropped"]
    return {"image": str(image["image"]), "face": None if face is None else [int(value) for value in face],
            "cropped": None if cropped is None else bool(cropped), "kept_in": str(image["kept_in"]),
            "part_row": int(image["part_row"])}


def crop_image(image: dict, config: FacesConfig) -> tuple[dict | None, str, str]:
    """`META`, `search` and `crop` of an image, or None and the reason; and its content (`provenance.content_of`)."""
    content = ""
    try:
        encoded = pixels.read(image["image"])
        content = provenance.digest(encoded)
        picture = pixels.decode_content(image["image"], encoded)
        row = _crop(picture, image["face"], bool(image["cropped"]), config)
        return row | shortcuts.measure(picture, encoded), "", content
    except pixels.ImageError as error:
        if isinstance(error.__cause__, FileNotFoundError):  # it was there when the data set was listed
            raise storage.StorageError(f"{image['image']}: is not to be found on {socket.gethostname()}; the data must "
                                       "lie under the same path on every node, and stay there") from None
        return None, str(error), content or str(error)
    except cv2.error as error:  # of a picture that no step can handle, such as one of 9 x 100,000 px
        if error.code == cv2.Error.StsNoMem:
            raise
        return None, " ".join(str(error).split()), content


def _crop(picture: np.ndarray, face: list[int] | None, cropped: bool, config: FacesConfig) -> dict:
    """`META`, `search` and `crop` of a picture. Raises: pixels.ImageError if the face given is none.

    A picture in which no face is found is kept whole: what becomes of it depends on the others of its data set.
    """
    height, width = picture.shape[:2]
    box, search, several = face, None, False
    if face is None and not cropped and config.already_cropped is not True:
        finder = _finder(config)
        box = finder.find(picture)
        if box is None and config.already_cropped == "auto" and faces.fills(finder, picture):
            search = "fills"
        else:
            search = "none" if box is None else "found"
        several = box is not None and finder.has_rival(picture, box)
    if face is not None and not (face[2] > 0 and face[3] > 0 and face[0] < width and face[1] < height
                                 and face[0] + face[2] > 0 and face[1] + face[3] > 0):
        raise pixels.ImageError(f"the box {face} given for the face lies outside the {width} x {height} px")
    found = box is not None
    x, y, w, h = (0, 0, width, height) if box is None else box
    crop = faces.crop_for(picture, (x, y, w, h) if found else None, config)
    bgr = crop if crop.ndim == 2 else cv2.cvtColor(crop, cv2.COLOR_RGB2BGR)
    encoded = cv2.imencode(".png", bgr, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
    return {"search": search, "box": [x, y, w, h], "face_found": found, "several": several, "width": width,
            "height": height, "channels": 1 if picture.ndim == 2 else 3,
            "digest": hashlib.blake2b(crop.tobytes(), digest_size=16).hexdigest(),
            **duplicates.looks_of(crop, picture), "crop": encoded}
