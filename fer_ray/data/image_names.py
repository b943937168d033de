"""Names of images: in tables of labels, often written on another system; and of copies that programs made."""

from __future__ import annotations

import functools
import posixpath
import re
from collections import defaultdict
from collections.abc import Iterable

from fer_ray.data.listing import File, Listing
from fer_ray.data.manifest import DataError

UNLISTED = "no row of the table names it"
MADE = "made from another picture of the set"
# What programs that multiply pictures add to their names: photo_aug1.jpg, photo-flipped.jpg, photo_rot15.jpg.
_ADDED = re.compile(r"[-_ .](aug|augmented|[hv]?flip|flipped|mirror|mirrored|rot|rotated?|crop|noise|noisy|blur|"
                    r"blurred|bright|brightness|contrast|gamma|shear|shift|zoom|scaled?)(?![a-z]).*$", re.IGNORECASE)


def made_from_others(images: Iterable[File]) -> set[str]:
    """Paths of the images whose name is another's in the same folder with the name of a change added.

    By a split at random they could be in another split than what they were made from. One of them stands for an
    original that is not there.
    """
    by_original = defaultdict(list)
    for image in images:
        stem = posixpath.splitext(image.path)[0]
        folder, name = posixpath.split(stem)
        original = _ADDED.sub("", name)
        by_original[folder, original.casefold()].append((original != name, image.path))
    return {path for found in by_original.values() for made, path in found if made and (made, path) != min(found)}


class ImageNames:
    r"""Finds the images of a table by their names, which start from `folder` or from the root of `files`.

    A name is taken as it stands, else with `/` for `\`, else in upper or lower case, else without its extension.
    `table` names the table, or several, in messages.
    """

    def __init__(self, table: str, files: Listing, folder: str):
        self.table, self.files, self.folder = table, files, folder
        self.found: set[str] = set()
        self.missing: list[str] = []
        self.respelled: list[tuple[str, str]] = []

    def find(self, name: str) -> str:
        """The manifest's name of an image; of one that is not there, what its name would be.

        Raises: DataError if several files fit equally well.
        """
        path = self.files.path_of(name, self.folder)
        if not self.files.file(path):
            like = self._like(name.strip().replace("\\", "/"))
            if like is None:
                self.missing.append(name)
                return self.files.uri(path)
            self.respelled.append((name, path := like))
        self.found.add(path)
        return self.files.uri(path)

    def _like(self, name: str) -> str | None:
        by_name, by_stem = self._index
        for path in (self.files.path_of(name, self.folder), self.files.path_of(name)):
            if self.files.file(path):
                return path
            for same in (by_name.get(path.casefold(), []), by_stem.get(path.casefold(), [])):
                if len(same) > 1:
                    raise DataError(f"{self.table}: {name!r} may be {' or '.join(map(self.files.uri, same))}; write "
                                    "the name as the file's own")
                if same:
                    return same[0]
        return None

    @functools.cached_property
    def _index(self) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """The paths of all images, by their path and by their path without extension, in lower case."""
        by_name, by_stem = defaultdict(list), defaultdict(list)
        for image in self.files.images():
            by_name[image.path.casefold()].append(image.path)
            by_stem[posixpath.splitext(image.path.casefold())[0]].append(image.path)
        return by_name, by_stem

    def check(self) -> None:
        """Raises: DataError if no image was found at all, which shows how the first names differ from the files'."""
        if self.missing and not self.found:
            there = [image.path for image in self.files.below(self.folder).images()[:3]]
            raise DataError(f"{self.table}: none of its {len(self.missing)} images is in {self.files.uri(self.folder)}"
                            f": its first names are {', '.join(map(repr, self.missing[:3]))}, the folder has "
                            f"{', '.join(map(repr, there)) or 'no image'}")

    def tell(self) -> None:
        """Print how many names were taken in another spelling."""
        if self.respelled:
            name, path = self.respelled[0]
            print(f"{self.table}: {len(self.respelled)} names are spelled otherwise than their files, such as {name!r} "
                  f"for {path}", flush=True)

    def unlisted(self, everywhere: bool) -> list[dict]:
        """A rejected row for each image of the folder that the table does not name.

        `everywhere`: the folder is for the table's images only; else only the folders of images that it names count.
        """
        paths = (posixpath.join(self.folder, image.path) for image in self.files.below(self.folder).images())
        folders = set(map(posixpath.dirname, self.found))
        return [{"image": self.files.uri(path), "reason": UNLISTED} for path in map(posixpath.normpath, paths)
                if path not in self.found and (everywhere or posixpath.dirname(path) in folders)]
