"""Options of the data: where raw images lie and how they are read, how faces are found, who goes to which split.

As in `fer_ray.config`, which gathers all options: a field's type carries its legal range, the text below it its
meaning.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Interval

from fer_ray.values import (
    AtLeast0,
    AtLeast1,
    Fraction,
    Kind,
    LocalPath,
    Name,
    Percent,
    PlaceBelow,
    Seed,
    Uri,
)


@dataclass(frozen=True)
class SourceConfig:
    """One data set on disk."""

    kind: Kind = "auto"
    """Layout of the data set; `auto` recognises it."""
    root: PlaceBelow = "."
    """Its folder or s3://bucket/prefix; a relative path is one below `data.root`."""
    name: Name = ""
    """Its name in reports; empty: its kind. Two sources of one kind need two names."""


@dataclass(frozen=True)
class CkPlusConfig:
    """Selection of frames from a CK+ sequence, which runs from a neutral face to the peak of the expression."""

    protocol: Literal["percent", "peak"] = "percent"
    """`percent`: frames are selected by their position in the sequence, as in the paper. `peak`: the first frame is
    neutral and the last `peak_frames` carry the label."""
    neutral_below: Percent = 20.0
    """Frames up to this position are neutral (% of the sequence)."""
    expression_above: Percent = 44.0
    """Frames from this position on carry the sequence's label (% of the sequence); those between the two positions
    are left out. The defaults keep about 76 % of all frames, as the paper does (4,500 of 5,900)."""
    peak_frames: AtLeast1 = 3
    """Frames at the end of a sequence that carry its label (protocol `peak`)."""
    unlabelled: Literal["skip", "neutral"] = "skip"
    """What becomes of a sequence without a label: it is rejected, or its neutral frames are used."""


@dataclass(frozen=True)
class Fer2013Config:
    """FER2013 and the votes of FER+ for the same images."""

    labels: Literal["auto", "fer2013", "ferplus"] = "auto"
    """Whose labels are used: those of FER2013, or those of FER+, which need fer2013new.csv beside the images. `auto`:
    those of FER+ if that file is there."""
    min_agreement: Fraction = 0.5
    """FER+: part of the votes that the winning expression needs; 0: the most votes win. Ties are rejected."""


@dataclass(frozen=True)
class FolderConfig:
    """A data set with one folder for each class: `class/image`, `split/class/image` or `person/class/image`."""

    subject_pattern: str = ""
    """Regular expression whose one group finds the person in an image's path below the root; empty: the folder around
    the folder of the class, where there are three or more, else people are unknown."""


@dataclass(frozen=True)
class TableConfig:
    """A table (CSV or Parquet) of labels, with image names beside a folder of images or the pixels inside."""

    file: PlaceBelow = ""
    """The table, relative to the data set's root; empty: the CSV or Parquet file with the columns below. Several are
    read if each is named after another split, or if they are all shards of one table."""
    images: PlaceBelow = ""
    """Folder of the images, relative to the data set's root; empty: `images`, or else the table's own folder."""
    image_column: str = "image"
    """Column that holds the image's file name. For `image` also filename, file_name, file, path, image_path, image_name
    or img is taken, which is told."""
    pixels_column: str = ""
    """Column that holds the pixels: grey values as text (CSV), or the bytes of an image file (Parquet). Empty: the
    images are files."""
    expression_column: str = "expression"
    """Column that holds the label, in any common spelling. For `expression` also emotion, label, emotion_label or
    expression_label is taken, which is told."""
    subject_column: str = ""
    """Column that names the person in the image; empty: none."""
    subject_pattern: str = ""
    """Regular expression whose one group finds the person in an image's file name; empty: none."""
    split_column: str = ""
    """Column that holds train, val or test, for `split.by official`; empty: none."""
    group_columns: list[str] = field(default_factory=list)
    """Further columns, such as age or camera, by which `evaluate.groups` may group results."""


@dataclass(frozen=True)
class SampleConfig:
    """The sample data set: drawn faces in the folder layouts of CK+ and JAFFE."""

    subjects: AtLeast1 = 60
    """Number of people in the drawn CK+."""
    seed: Seed = 0
    """Seed of the drawing."""


@dataclass(frozen=True)
class DataConfig:
    """Where the raw data lies and how it is read."""

    kind: Kind = "auto"
    """Layout of the data set at `data.root`; `auto` recognises it."""
    root: Uri = ""
    """Folder of the raw data: a path, file:///... or s3://bucket/prefix. `~` and environment variables such as
    $FER_DATA are expanded."""
    sources: list[SourceConfig] = field(default_factory=list)
    """Several data sets to join, each with `kind`, `root` and `name`; empty: `data.root` itself is the only one."""
    unclaimed: Literal["error", "report"] = "error"
    """What happens if picture files in the data sets' folders belong to no data set that is read: an error that names
    their folders, or only a number in the report."""
    names: dict[str, str] = field(default_factory=dict)
    """Names or codes of the expressions in your own folders and tables, such as {0: anger}."""
    exclude: Uri = ""
    """CSV file whose column `image` names images to leave out (its column `reason` says why), such as suspects.csv of
    a label audit; empty: none."""
    ckplus: CkPlusConfig = field(default_factory=CkPlusConfig)
    fer2013: Fer2013Config = field(default_factory=Fer2013Config)
    folder: FolderConfig = field(default_factory=FolderConfig)
    table: TableConfig = field(default_factory=TableConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)


@dataclass(frozen=True)
class FacesConfig:
    """Finding and cropping faces."""

    detector: Literal["haar", "yunet"] = "haar"
    """What finds faces: OpenCV's Haar cascade for frontal faces, as in the paper, or its network YuNet."""
    model: LocalPath = ""
    """Model file of YuNet (face_detection_yunet_2023mar.onnx of OpenCV's model zoo); only for `yunet`."""
    already_cropped: Literal["auto", True, False] = "auto"
    """`true`: the images show a face and nothing else, and each is used whole, without a search, as those of FER2013
    and CK+48 always are. `false`: they are photographs. `auto`: a face that fills its image is found too, with a border
    about the image, and that image is used whole; and if these show that the images of a data set are cropped to the
    face, so are those in which no face is found. It says what it decided."""
    enlarge: Annotated[float, Interval(ge=0, le=10)] = 0.2
    """How much a found box grows about its centre, as a part of its side; 0.2: by 20 %, as in the paper."""
    shape: Literal["square", "ratio"] = "square"
    """`square`: the square about the box, moved into the image, is scaled to 256 x 256 px. `ratio`: as in the paper,
    the box ends at the image's border and its shorter side becomes 256 px; the middle of the longer one is kept."""
    scale_factor: Annotated[float, Interval(gt=1, le=10)] = 1.1
    """Haar: factor between two scales of the image pyramid."""
    min_neighbors: AtLeast0 = 5
    """Haar: number of overlapping detections that make a face."""
    detect_side: AtLeast1 = 640
    """A larger image is searched in a copy whose longer side has this many px; the box is mapped back."""
    gray: bool = True
    """Make grey crops of coloured pictures too. Where the pictures of some expressions are in colour and those of
    others grey, a network would else learn the colour instead of the face. The paper's crops keep their colour."""
    on_no_face: Literal["reject", "whole"] = "reject"
    """What becomes of an image in which no face is found: it is rejected, or used whole."""


@dataclass(frozen=True)
class SplitConfig:
    """Which images go to train, val and test."""

    by: Literal["subject", "sequence", "image", "official", "test"] = "subject"
    """`subject`: nobody is in two splits. `sequence`: no sequence is in two splits. `official`: the data set's own
    split. `image`: images at random, as in the paper, so that people are in two splits and scores look better than
    they are. `test`: every image is a test image, for a set that nothing is trained on."""
    folds: AtLeast0 = 0
    """Cross-validation: number of folds, at least 3; 0: one split of 80/10/10 %."""
    fold: AtLeast0 = 0
    """The fold, counted from 0, that is the test split; val is about a tenth of all images, from the next one."""
    seed: Seed = 0
    """Seed of the split; the same seed gives the same split whatever the order of files."""
