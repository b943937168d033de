"""Data sets as people really have them, small, and what must come of each; built after public bug reports."""

from __future__ import annotations

import csv
import io
import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

WORDS = {"angry": "anger", "happy": "happiness", "sad": "sadness"}
RAF = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")
FER = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")
USAGES = {"Training": "train", "PublicTest": "val", "PrivateTest": "test"}
NAMES = dict(enumerate(FER))


@dataclass(frozen=True)
class Case:
    """How to build a data set, and what must come of it."""

    build: Callable[[Path], None]
    rows: Counter[tuple[str, str | None]] = field(default_factory=Counter)  # by expression and official split
    rejected: int = 0
    people: int = 0
    error: str = ""  # what it must say if it must be refused
    links: bool = False  # it has some, which a bucket has not


def picture(seed: str, side: int = 12) -> np.ndarray:
    """Noise, so that no two pictures are alike; uint8 [side, side]."""
    return np.random.default_rng(zlib.crc32(seed.encode())).integers(0, 256, (side, side), np.uint8)


def encoded(seed: str, suffix: str = ".png") -> bytes:
    """The file of a picture."""
    return cv2.imencode(suffix, picture(seed, 64 if suffix == ".jp2" else 12))[1].tobytes()


def put(path: Path, content: bytes | str | None = None) -> None:
    """Write a file, by default a picture of the kind that its name tells."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is None:
        suffix = path.suffix.lower()
        content = encoded(str(path), ".jpg" if suffix in (".jpe", ".jfif") else suffix or ".png")
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def classes(root: Path, around: Iterable[str], names: Iterable[str] = WORDS, each: int = 2) -> None:
    """`each` pictures in each folder of a class, below each of the folders `around`."""
    for number in range(each):
        for place in around:
            for name in names:
                put(root / place / name / f"{number}.jpg")


def labelled(*splits: str | None, names: Iterable[str] = WORDS.values(), each: int = 2) -> Counter:
    """So many rows of each of these expressions in each split."""
    return Counter({(name, split): each for name in names for split in splits})


# --- sets of the field -----------------------------------------------------------------------------------


def ck48(root: Path, people: Iterable[int], names: Iterable[str] = ("anger", "happy"), suffix: str = "png") -> None:
    for person in people:
        for number, name in enumerate(names):
            for frame in (12, 13, 14):
                put(root / name / f"S{person:03}_{number:03}_{frame:08}.{suffix}")


def ckplus(root: Path, kept: int) -> None:
    """The last frames of the sequences of four people."""
    for person in range(20, 24):
        last, name = person - 5, f"S{person:03}_001_"
        for frame in range(last - kept + 1, last + 1):
            put(root / f"cohn-kanade-images/S{person:03}/001/{name}{frame:08}.png")
        put(root / f"Emotion/S{person:03}/001/{name}{last:08}_emotion.txt", "   3.0000000e+00\n")


def rafdb(root: Path, first: int = 1, names: Iterable[str] = (), more: str = "") -> None:
    """Two training pictures and one test picture a class, in folders with numbers or `names`; copies named `more`."""
    for number, folder in enumerate(names or map(str, range(first, first + 7))):
        for split, each in (("train", 2), ("test", 1)):
            for one in range(each):
                stem = f"DATASET/{split}/{folder}/{split}_{10 * number + one:05}_aligned"
                put(root / f"{stem}.jpg")
                if more and split == "train":
                    put(root / f"{stem}{more}")


def jaffe(root: Path) -> None:
    for person in ("KA", "KL", "KM", "KR"):
        for name in (f"{person}.AN1.3.tiff", f"{person}-HA2.4.tiff", f"{person}.SA3.5.jpeg"):
            put(root / name)


def affectnet(root: Path) -> None:
    header = "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal\n"
    for name, start in (("training", header), ("validation", "")):
        rows = [f'{code % 3}/{name}{code}.jpg,1,1,9,9,"1;2",{code},0.1,0.1\n' for code in range(8)]
        put(root / f"lists/{name}.csv", start + "".join(rows))
        for code in range(8):
            put(root / f"Manually_Annotated_Images/{code % 3}/{name}{code}.jpg")


def fer2013(root: Path, file: str = "fer2013.csv", header: tuple[str, ...] = ("emotion", "pixels", "Usage"),
            encoding: str = "utf-8", after: str = "", **dialect) -> None:
    """One row of each class and usage. `header`: also names which columns there are."""
    sink = io.StringIO()
    writer = csv.writer(sink, **({"lineterminator": "\n"} | dialect))
    writer.writerow(header)
    for number, (usage, code) in enumerate((usage, code) for usage in USAGES for code in range(7)):
        values = {"emotion": code, "pixels": " ".join(map(str, picture(f"{root} {number}", 48).ravel())),
                  "usage": usage, "": number}
        writer.writerow([values[name.strip().lower()] for name in header])
    put(root / file, (sink.getvalue() + after).encode(encoding))


def table(root: Path, text: str, file: str = "labels.csv", encoding: str = "utf-8", folder: str = "images") -> None:
    for name in "abcd":
        put(root / folder / f"{name}.jpg")
    put(root / file, text.encode(encoding))


def parquet(root: Path, file: str, labels: list, column: str = "expression", **columns: list) -> None:
    put(root / file, b"")
    images = [{"bytes": encoded(f"{root / file} {number}"), "path": None} for number in range(len(labels))]
    pq.write_table(pa.table({"image": images, column: labels, **columns}), root / file)


def hf_cache(root: Path) -> None:
    for word in WORDS:
        for number in range(2):
            put(root / f"blobs/{word}{number}", encoded(f"{root} {word}{number}"))
            link = root / f"snapshots/abc/{word}/{number}.jpg"
            link.parent.mkdir(parents=True, exist_ok=True)
            os.symlink(f"../../../blobs/{word}{number}", link)


# --- what surrounds them ---------------------------------------------------------------------------------


def with_junk(root: Path, *names: str) -> None:
    """Class folders, and pictures at places that systems or this program made."""
    classes(root, ["."])
    for name in names:
        put(root / name, b"{}" if name.endswith("json") else encoded(name))


def many_formats(root: Path) -> None:
    classes(root, ["."])
    for suffix in "jfif jpe jp2 avif bmp pnm tif webp JPG".split():
        put(root / f"happy/x.{suffix}")
    put(root / "happy/x.heic", b"\0\0\0\x18ftypheic")


def odd_exif(root: Path) -> None:
    """A JPEG whose EXIF says that Orientation, a number by the standard, is text."""
    classes(root, ["."])
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0six\0\0\0\0\0"
    jpeg = encoded(str(root), ".jpg")
    put(root / "sad/odd.jpg", jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:])


CSV = "image,expression\na.jpg,angry\nb.jpg,happy\nc.jpg,sad\nd.jpg,angry\n"
CSV_ROWS = Counter({("anger", None): 2, ("happiness", None): 1, ("sadness", None): 1})
PLAIN = labelled(None)
FER_ROWS = labelled(*USAGES.values(), names=FER, each=1)
RAF_ROWS = labelled("train", names=RAF) + labelled("test", names=RAF, each=1)
SHARDS = ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001")
LABELS = [0, 3, 4, 0, 3, 4]
CODED = Counter({("anger", None): 2, ("happiness", None): 2, ("sadness", None): 2})

# Cases that need no options.
CASES: dict[str, Case] = {
    "ck48_train_test": Case(lambda root: (ck48(root / "train", (10, 11)), ck48(root / "test", [12])), Counter(
        {(e, s): n for e in ("anger", "happiness") for s, n in (("train", 6), ("test", 3))}), people=3),
    "ck48_jpeg": Case(lambda root: ck48(root, (13, 14), suffix="JPEG"),
                      labelled(None, names=("anger", "happiness"), each=6), people=2),
    "ck48_and_fer_folders": Case(
        lambda root: (ck48(root / "CK+48", (15,)), classes(root / "FER2013", ("train", "test"))),
        labelled(None, names=("anger", "happiness"), each=3) + labelled("train", "test"), people=1),
    "ck48_own_neutral": Case(lambda root: (ck48(root, (16,)), classes(root, ["."], ["neutral"])),
                             labelled(None, names=("anger", "happiness"), each=3) + Counter({("neutral", None): 2}),
                             people=1),
    "ckplus_apex_one": Case(lambda root: ckplus(root, 1), Counter({("disgust", None): 4}), people=4),
    "ckplus_peak_only": Case(lambda root: ckplus(root, 3), Counter({("disgust", None): 12}), people=4),
    "rafdb_numbered": Case(rafdb, RAF_ROWS),
    "rafdb_augmented": Case(lambda root: rafdb(root, more="_aug1.JPG"), RAF_ROWS, rejected=14),
    "rafdb_kaggle_names": Case(lambda root: rafdb(root, names=RAF), RAF_ROWS),
    "rafdb_zero_based": Case(lambda root: rafdb(root, 0), error="cannot be told"),
    "raf_compound": Case(lambda root: (put(root / "EmoLabel/list_patition_label.txt", "train_0001.jpg 8\n"), put(
        root / "Image/aligned/train_0001_aligned.jpg")), error="compound emotions"),
    "jaffe_converted": Case(jaffe, labelled(None, each=4), people=4),
    "affect_val_no_header": Case(affectnet, labelled("train", "val", names=(*FER, "contempt"), each=1)),
    "fer_bom": Case(lambda root: fer2013(root, encoding="utf-8-sig", lineterminator="\r\n"), FER_ROWS),
    "fer_upper": Case(lambda root: fer2013(root, "FER2013.CSV"), FER_ROWS),
    "fer_semicolon": Case(lambda root: fer2013(root, delimiter=";"), FER_ROWS),
    "fer_quoted": Case(lambda root: fer2013(root, quoting=csv.QUOTE_ALL), FER_ROWS),
    "fer_train_only": Case(lambda root: fer2013(root, "train.csv", ("emotion", "pixels")),
                           labelled("train", names=FER, each=3)),
    "fer_usage_lower": Case(lambda root: fer2013(root, header=("emotion", "pixels", "usage")), FER_ROWS),
    "fer_index_col": Case(lambda root: fer2013(root, header=("", "emotion", "pixels", "Usage")), FER_ROWS),
    "fer_kaggle_all": Case(lambda root: (
        fer2013(root), fer2013(root, "icml_face_data.csv", ("emotion", " Usage", " pixels")),
        fer2013(root, "train.csv", ("emotion", "pixels")), fer2013(root, "test.csv", ("pixels",))), FER_ROWS),
    "fer_junk_tail": Case(lambda root: fer2013(root, after="<a>,b,c,d,e,f\n"), error="row 23: 6 values"),
    "csv_bom_crlf": Case(lambda root: table(root, CSV.replace("\n", "\r\n"), encoding="utf-8-sig"), CSV_ROWS),
    "csv_trailing": Case(lambda root: table(root, CSV.replace("sad", " sad ") + "\n"), CSV_ROWS),
    "csv_semicolon": Case(lambda root: table(root, CSV.replace(",", ";"), encoding="utf-8-sig"), CSV_ROWS),
    "csv_utf16": Case(lambda root: table(root, CSV, encoding="utf-16"), CSV_ROWS),
    "csv_upper": Case(lambda root: table(root, CSV, "LABELS.CSV"), CSV_ROWS),
    "csv_case": Case(lambda root: table(root, CSV.replace(".jpg", ".JPG")), CSV_ROWS),
    "csv_noext": Case(lambda root: table(root, CSV.replace(".jpg", "")), CSV_ROWS),
    "csv_backslash": Case(lambda root: table(root, "".join(
        line if line.startswith("image") else f"in\\{line}" for line in CSV.splitlines(True)), folder="images/in"),
        CSV_ROWS),
    "csv_latin1": Case(lambda root: table(root, CSV + "e.jpg,wütend\n", encoding="latin-1"), error="is no UTF-8 text"),
    "csv_missing_label": Case(lambda root: table(root, CSV.replace("sad", "")), error="row 4: unknown expression ''"),
    "synology": Case(lambda root: with_junk(root, "happy/@eaDir/0.jpg/SYNOPHOTO_THUMB_M.jpg", "#recycle/1.jpg"), PLAIN),
    "usb_stick": Case(lambda root: with_junk(root, "System Volume Information/1.jpg", "$RECYCLE.BIN/S-1/$R1.jpg",
                                             ".Trashes/1.jpg", "__MACOSX/happy/._0.jpg"), PLAIN),
    "storage_inside": Case(lambda root: with_junk(root, "out/prepared/x/prepared.json", "out/runs/x/a.png"), PLAIN),
    "formats": Case(many_formats, PLAIN + Counter({("happiness", None): 9}), rejected=1),
    "exif_crash": Case(odd_exif, PLAIN + Counter({("sadness", None): 1})),
    "sfew": Case(lambda root: (classes(root, ("Train", "Val")), put(root / "Test/1.png"), put(root / "Test/2.png")),
                 labelled("train", "val"), rejected=2),
    "person_class": Case(lambda root: classes(root, ("ann", "bob", "carl")), labelled(None, each=6), people=3),
    "class_person": Case(lambda root: classes(root, WORDS, ("ann", "bob", "carl")), labelled(None, each=6), people=3),
    "hf_cache": Case(hf_cache, PLAIN, links=True),
    "two_sets_one_misspelt": Case(lambda root: classes(root, ("setA", "setB"), ("angry", "suprise")),
                                  error="suprise.*did you mean 'surprise'"),
    "ahegao": Case(lambda root: classes(root, ["dataset"], (*WORDS, "Ahegao")), error="Ahegao.*data.names"),
    "numbered": Case(lambda root: classes(root, ("train", "test"), list("0123456")), error="data.names"),
    "float_codes": Case(lambda root: table(root, "image,expression\na.jpg,0.0\n"), error="'0.0'.*data.names")}

# Cases for `data.names` NAMES and `data.table.subject_column` subject.
TOLD: dict[str, Case] = {
    "fer_numbered": Case(lambda root: classes(root, ("train", "test"), list("0123456")),
                         labelled("train", "test", names=FER)),
    "csv_float_codes": Case(lambda root: table(root, "image,expression,subject\na.jpg,0.0,\nb.jpg,3.0,nan\n"
                                                     "c.jpg,4.0,7\nd.jpg,0,7.0\n"), CSV_ROWS, people=1),
    "hf_shards": Case(lambda root: [parquet(root, f"data/{name}.parquet", LABELS, "label", subject=[None] * 6)
                                    for name in SHARDS],
        Counter({(e, s): n for e, _ in CODED for s, n in (("train", 4), ("test", 2))})),
    "parquet_null_subject": Case(lambda root: parquet(root, "faces.parquet", LABELS, subject=["p", None] * 3), CODED,
                                 people=1),
    "parquet_float_subject": Case(lambda root: parquet(root, "faces.parquet", LABELS, subject=[1.0, None, 2.0] * 2),
                                  CODED, people=2)}


# --- all of them in one job ------------------------------------------------------------------------------

GROUPS = {"plain": (CASES, []),
          "told": (TOLD, ["--data.names", str({str(code): name for code, name in NAMES.items()}).replace("'", '"'),
                          "--data.table.subject_column", "subject"])}


def usable(group: str, links: bool = True) -> dict[str, Case]:
    """The cases of a group that must be read."""
    return {name: case for name, case in GROUPS[group][0].items() if not case.error and (links or not case.links)}


def options(group: str, root: str, links: bool = True) -> list[str]:
    """Of a prepare that joins the cases of a group, each a source of its name."""
    found = [{"root": f"{name}/snapshots/abc" if GROUPS[group][0][name].links else name, "name": name}
             for name in usable(group, links)]
    return ["--name", group, "--data.root", f"{root}/{group}", "--data.sources", json.dumps(found),
            "--split.by", "image", "--faces.already_cropped", "true", *GROUPS[group][1]]


def check(group: str, index: pd.DataFrame, rejected: pd.DataFrame, links: bool = True) -> None:
    """Assert that of each case came what must come of it, by class and official split."""
    of_case, case_of_rejected = ([name.partition("-")[0] for name in table["dataset"]] for table in (index, rejected))
    assert set(of_case) == set(usable(group, links))
    for name, case in usable(group, links).items():
        rows = index[np.array(of_case) == name]
        official = rows["official"].astype(object).where(rows["official"].notna(), None)
        assert Counter(zip(rows["expression"], official, strict=True)) == case.rows, name
        assert rows["subject"].nunique() == case.people, name
        assert case_of_rejected.count(name) == case.rejected, name
