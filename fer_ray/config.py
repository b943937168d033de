"""Every knob of every job, typed, with its default, unit and meaning: one tree of frozen dataclasses."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import re
from dataclasses import dataclass, field
from typing import Literal

from fer_ray.errors import UserError

Kind = Literal["auto", "ckplus", "ck48", "ckextended", "jaffe", "fer2013", "rafdb", "affectnet", "folder", "table",
               "sample"]
BACKBONES = ("alexnet", "vgg19", "resnet152", "resnet50", "resnet18", "efficientnet_lite0")


class ConfigError(UserError):
    """The configuration is wrong; the message names key, value and what would be right."""


@dataclass(frozen=True)
class SourceConfig:
    """One data set on disk."""

    kind: Kind = "auto"
    """Layout of the data set; `auto` recognises it."""
    root: str = "."
    """Its folder, relative to `data.root`."""
    name: str = ""
    """Its name in the report; empty: the kind. Two sources of one kind need two names."""


@dataclass(frozen=True)
class CkPlusConfig:
    """Pre-selection of frames in a CK+ sequence, which runs from neutral to apex."""

    protocol: Literal["percent", "peak"] = "percent"
    """`percent`: by position, as in the paper; `peak`: the first frame is neutral, the last `peak_frames` carry the
    label."""
    neutral_below: float = 20.0
    """Frames up to this position (percent of the sequence) are neutral."""
    expression_above: float = 44.0
    """Frames from this position on (percent) carry the sequence's label; those between are dropped. The defaults
    keep about 76 %, the paper's 4,500 of 5,900 frames."""
    peak_frames: int = 3
    """Frames at the end of a sequence that carry its label (protocol `peak`)."""
    unlabelled: Literal["skip", "neutral"] = "skip"
    """Sequences without a label: rejected, or used for their neutral frames only."""


@dataclass(frozen=True)
class Fer2013Config:
    """FER2013 and the votes of FER+ for the same images."""

    labels: Literal["auto", "fer2013", "ferplus"] = "auto"
    """Whose labels: `ferplus` needs fer2013new.csv beside the images; `auto` takes it if it is there."""
    min_agreement: float = 0.5
    """FER+: share of the votes that the winning expression needs; 0: the most votes win. Ties are rejected."""


@dataclass(frozen=True)
class FolderConfig:
    """A folder a class: `class/image` or `split/class/image`."""

    subject_pattern: str = ""
    """Regular expression with one group that finds the subject in the path below the root; empty: none."""


@dataclass(frozen=True)
class TableConfig:
    """A table (CSV or Parquet) of labels, with image names beside a folder of images or the pixels inside."""

    file: str = ""
    """The table, relative to the root; empty: the only CSV or Parquet file under the root."""
    images: str = "images"
    """Folder of the images, relative to the root."""
    image_column: str = "image"
    """Column that holds the image's file name."""
    pixels_column: str = ""
    """Column that holds the pixels: grey values as text (CSV) or the bytes of an image file (Parquet); empty: none."""
    expression_column: str = "expression"
    """Column that holds the label, in any common spelling."""
    subject_column: str = ""
    """Column that says who is in the image; empty: none."""
    subject_pattern: str = ""
    """Regular expression with one group that finds the subject in the file name; empty: none."""
    split_column: str = ""
    """Column that holds train, val or test, for split.by official; empty: none."""
    group_columns: list[str] = field(default_factory=list)
    """Further columns, such as age or camera, that evaluate.groups may name."""


@dataclass(frozen=True)
class SampleConfig:
    """The rendered sample: a small synthetic CK+ and JAFFE in their true layouts."""

    subjects: int = 60
    """Number of people in the sample CK+."""
    seed: int = 0
    """Seed of the rendering."""


@dataclass(frozen=True)
class DataConfig:
    """Where the raw data lies and how to read it."""

    kind: Kind = "auto"
    """Layout of the data set at `data.root`; `auto` recognises it."""
    root: str = ""
    """Folder of the raw data. Environment variables such as $FER_DATA are expanded."""
    sources: list[SourceConfig] = field(default_factory=list)
    """Several data sets to join, each with `kind` and `root`; empty: `data.root` itself is the only one."""
    names: dict[str, str] = field(default_factory=dict)
    """Names or codes of the expressions in your own folders and tables, such as {"0": "anger"}."""
    exclude: str = ""
    """CSV with the column `image` (and `reason`) of images to leave out, such as a label audit's suspects.csv; empty:
    none."""
    ckplus: CkPlusConfig = field(default_factory=CkPlusConfig)
    fer2013: Fer2013Config = field(default_factory=Fer2013Config)
    folder: FolderConfig = field(default_factory=FolderConfig)
    table: TableConfig = field(default_factory=TableConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)


@dataclass(frozen=True)
class FacesConfig:
    """Finding and cropping faces."""

    detector: Literal["haar", "yunet"] = "haar"
    """OpenCV's frontal face Haar cascade (the paper's), or its network YuNet."""
    model: str = ""
    """YuNet's model file (face_detection_yunet_2023mar.onnx of OpenCV's model zoo); only for `yunet`."""
    already_cropped: bool = False
    """The images are faces and nothing else: no search, each is used whole. Known by itself for FER2013 and CK+48."""
    enlarge: float = 0.2
    """The found box grows by this share about its centre (paper: 20 %)."""
    scale_factor: float = 1.1
    """Haar: step between the scales of the image pyramid."""
    min_neighbors: int = 5
    """Haar: overlapping detections that a face needs."""
    detect_side: int = 640
    """Longer side (px) of the copy of a larger image that is searched; the box is mapped back."""
    on_no_face: Literal["reject", "whole"] = "reject"
    """An image without a found face: rejected, or used whole."""


@dataclass(frozen=True)
class SplitConfig:
    """Who goes to train, val and test."""

    by: Literal["subject", "sequence", "image", "official", "test"] = "subject"
    """`subject`: nobody stands in two splits. `official`: the data set's own split. `image`: the paper's, which
    leaks. `test`: every image is a test image, for a set that nothing is trained on."""
    folds: int = 0
    """Cross-validation: number of folds; 0: one split of 80/10/10."""
    fold: int = 0
    """The fold (from 0) that is the test split; the next one is val."""
    seed: int = 0
    """Seed of the split; the same seed gives the same split whatever the order of files."""


@dataclass(frozen=True)
class TrainConfig:
    """Fine-tuning by SGD with momentum."""

    backbone: str = "alexnet"
    """Network: alexnet, vgg19, resnet152, resnet50, resnet18, efficientnet_lite0, or timm:NAME (extra `timm`)."""
    weights: str = "imagenet"
    """Initial weights: `imagenet`, `none` (random), the path or URI of a torchvision-style state dict, or of one of
    our own checkpoints (its folder), whose head is kept."""
    layers: Literal["all", "head"] = "all"
    """What is trained: all weights, or the last layer alone on features that are computed once (no augmentation)."""
    epochs: int = 30
    """Most epochs to train."""
    batch_size: int = 32
    """Images per optimiser step over all workers."""
    micro_batches: int = 1
    """Parts that a worker cuts its share of a batch into, one after the other (gradient accumulation): less memory."""
    lr: float = 0.001
    """Learning rate, at its highest."""
    lr_per_256: bool = False
    """Linear scaling rule: `lr` is meant for batches of 256 images and is scaled to `batch_size`."""
    momentum: float = 0.9
    """Momentum of SGD."""
    nesterov: bool = False
    """Nesterov's form of momentum."""
    weight_decay: float = 0.0
    """L2 penalty on weights (none on biases and norms)."""
    schedule: Literal["constant", "step", "cosine"] = "constant"
    """Learning rate over the epochs; `step`: a tenth after every `step_epochs`; `cosine`: down to 0."""
    step_epochs: int = 10
    """Epochs between the steps of `schedule step`."""
    warmup_epochs: int = 0
    """First epochs over which the learning rate grows linearly."""
    clip_norm: float = 0.0
    """Largest norm of the gradient; 0: not clipped."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes."""
    class_weights: Literal["none", "sqrt", "balanced"] = "none"
    """Weight of each class in the loss: equal, or by the inverse (square root of the) frequency."""
    sampling: Literal["natural", "balanced"] = "natural"
    """Images of an epoch: each once, or drawn so that all classes are equally frequent."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the forward pass; `auto`: bf16 on GPUs that have it, else fp32."""
    compile: bool = False
    """Compile the network (torch.compile): slow to start, faster on GPUs."""
    patience: int = 10
    """Epochs without a better validation balanced accuracy before training stops."""
    seed: int = 0
    """Seed of new weights, order of images, augmentation and dropout."""
    num_workers: int = 1
    """Training processes (DDP)."""
    min_workers: int = 0
    """Elastic training: go on with as few workers as this when nodes are lost; 0: always `num_workers`."""
    use_gpu: bool = False
    """One GPU per worker (NCCL); otherwise CPU (gloo)."""
    cache_gb: float = 8.0
    """Decoded crops that may stay in a node's memory (GiB); a larger set is streamed in every epoch."""
    checkpoint_every_steps: int = 0
    """Checkpoints within an epoch, every so many steps; 0: only at its end."""
    num_to_keep: int = 2
    """Checkpoints kept in storage: the best and the latest."""
    max_failures: int = 3
    """Restarts from the last checkpoint after a worker died."""
    mlflow: str = ""
    """URI of an MLflow server that gets every epoch's numbers too (extra `mlflow`); empty: none."""
    from_tune: str = ""
    """Name of a finished search (jobs/tune.py) in the same storage, whose best values replace those given here; empty:
    none."""


@dataclass(frozen=True)
class TuneConfig:
    """The search over learning rate and momentum (jobs/tune.py). Its trials take all else from `train`."""

    searcher: Literal["tpe", "gp", "random", "grid"] = "tpe"
    """What chooses the trials: Optuna's tree-structured Parzen estimator or Gaussian process, chance, or a full grid.
    All but the grid begin with `train.lr` and `train.momentum`."""
    scheduler: Literal["asha", "hyperband", "median", "none"] = "asha"
    """What ends hopeless trials: asynchronous successive halving, HyperBand, the median of all, or nothing."""
    num_trials: int = 16
    """Number of trials; a grid has as many as its points."""
    max_epochs: int = 9
    """Epochs of a trial that is never stopped."""
    grace_epochs: int = 1
    """Epochs that every trial gets."""
    reduction_factor: int = 4
    """Of so many trials one goes on (ASHA, HyperBand); the rungs are `grace_epochs` times its powers."""
    budget_epochs: int = 0
    """Epochs of all trials together after which the search ends; 0: no limit."""
    budget_minutes: float = 0.0
    """Minutes after which the search ends; 0: no limit."""
    max_concurrent: int = 0
    """Trials side by side; 0: as many as the cluster has GPUs for, on CPUs one for every four cores."""
    plane: Literal["effective", "plain"] = "effective"
    """Where points are drawn: lr / (1 - momentum), which is what acts, by 1 - momentum, both on a logarithmic scale; or
    lr, logarithmic, by momentum."""
    lr: list[float] = field(default_factory=list)
    """Lowest and highest learning rate, in the plane `effective` lr / (1 - momentum); empty: what suits the
    backbones."""
    momentum: list[float] = field(default_factory=lambda: [0.0, 0.99])
    """Lowest and highest momentum."""
    backbones: list[str] = field(default_factory=list)
    """Networks to choose from; empty: `train.backbone`."""
    batch_sizes: list[int] = field(default_factory=list)
    """Batch sizes to choose from; empty: `train.batch_size`."""
    weight_decay: list[float] = field(default_factory=list)
    """Lowest and highest weight decay, logarithmic; empty: `train.weight_decay`."""
    label_smoothing: list[float] = field(default_factory=list)
    """Lowest and highest label smoothing; empty: `train.label_smoothing`."""
    grid_points: int = 4
    """Points of the grid on each of its axes, ends included."""
    seed: int = 0
    """Seed of the choice of points; trials train with `train.seed`."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Scoring a checkpoint on the test split."""

    checkpoint: str = ""
    """Checkpoint folder; empty: the best one of the run `name`."""
    batch_size: int = 64
    """Images per forward pass."""
    floor: bool = False
    """Also score a logistic regression on the frozen ImageNet features of the same backbone and split."""
    also: list[SourceConfig] = field(default_factory=list)
    """Further data sets to score whole, each with `kind`, `root` and `name`: another data set, or the photographs of
    one new person (the paper's Fig 16)."""
    groups: list[str] = field(default_factory=lambda: ["dataset"])
    """Columns whose values get results of their own: dataset, subject, sequence or one of data.table.group_columns."""


@dataclass(frozen=True)
class PredictConfig:
    """Expressions of photographs without labels (jobs/predict.py), into `predictions/NAME/` of the storage."""

    images: str = ""
    """Folder of images, or one image."""
    checkpoint: str = ""
    """Checkpoint folder; empty: the best one of the run `name`."""


@dataclass(frozen=True)
class ProtocolConfig:
    """How a score is made from several runs (jobs/crossval.py)."""

    kind: Literal["holdout", "folds", "seeds", "paper_vs_honest"] = "folds"
    """`holdout`: one run. `folds`: each fold is the test split once. `seeds`: the same split, trained with several
    seeds. `paper_vs_honest`: once split by image, as in the paper, and once by subject, all else equal."""
    repeats: int = 5
    """Number of folds or of seeds."""
    parallel: int = 0
    """Runs that train side by side; 0: as many as the cluster has CPUs (or GPUs) for."""


@dataclass(frozen=True)
class CardConfig:
    """What only you can say in the report's model card."""

    intended_use: str = "Research on facial expression recognition."
    """What the model is for."""
    limits: str = ""
    """What it must not be used for, and for whom it was not tested, beside what the report says by itself."""
    provenance: str = ""
    """Where the data comes from and who agreed to its use."""
    licence: str = ""
    """Licence of each data set and, following from that, of the model."""


@dataclass(frozen=True)
class CompareConfig:
    """Several backbones over the same epochs and split (jobs/compare.py)."""

    backbones: list[str] = field(default_factory=lambda: ["alexnet", "vgg19", "resnet152"])
    """Networks to compare (paper: Fig 12)."""


@dataclass(frozen=True)
class Config:
    """A job of fer_ray."""

    name: str = "default"
    """Name of the run. The same name with the same storage resumes it."""
    storage: str = "fer_ray_output"
    """Root of all output: a folder, file://... or s3://bucket/prefix. Endpoint, region and credentials of S3 are those
    of the AWS environment and profiles."""
    prepared: str = ""
    """Name of the prepared set, to train several runs on one; empty: the run's name."""
    data: DataConfig = field(default_factory=DataConfig)
    faces: FacesConfig = field(default_factory=FacesConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    predict: PredictConfig = field(default_factory=PredictConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)
    card: CardConfig = field(default_factory=CardConfig)
    labels: bool = False
    """jobs/audit.py: also look for wrong labels, by the predictions of folds that are trained for it."""
    retrain: bool = False
    """jobs/audit.py --labels: train the folds again without the suspects and compare."""


def check(config: Config) -> Config:
    """Return `config` if all values make sense together. Raises: ConfigError listing all that do not."""
    t, problems = config.train, []
    if leaking := _secrets(to_dict(config)):  # at once, and alone: no message may repeat them
        raise ConfigError("; ".join(
            f"{key}: carries credentials, which would end up in results and logs; leave them out of it and give them "
            f"by {_ENVIRONMENT.get(key, 'the AWS environment')}" for key in leaking))
    if t.backbone not in BACKBONES and not t.backbone.startswith("timm:"):
        problems.append(f"train.backbone: unknown backbone {t.backbone!r}; known: {', '.join(BACKBONES)}, timm:NAME")
    for key, name in (("name", config.name), ("prepared", config.prepared), ("train.from_tune", t.from_tune),
                      *(("data.sources", source.name) for source in config.data.sources)):
        if (name or key == "name") and not _is_plain(name):
            problems.append(f"{key}: {name!r} must be a plain name without '/': letters, digits, and blanks . _ + - "
                            "after the first")
    for key in ("train.epochs", "train.batch_size", "train.num_workers", "train.patience", "train.num_to_keep",
                "train.micro_batches", "train.step_epochs", "evaluate.batch_size", "faces.detect_side",
                "data.sample.subjects", "data.ckplus.peak_frames"):
        if _value(config, key) < 1:
            problems.append(f"{key}: {_value(config, key)} must be at least 1")
    if not (math.isfinite(t.lr) and t.lr > 0):
        problems.append(f"train.lr: {t.lr} must be greater than 0")
    if not 0 <= t.momentum < 1:
        problems.append(f"train.momentum: {t.momentum} must lie in [0, 1)")
    for key in ("warmup_epochs", "clip_norm", "weight_decay", "cache_gb", "checkpoint_every_steps", "max_failures"):
        if not getattr(t, key) >= 0:
            problems.append(f"train.{key}: {getattr(t, key)} must not be negative")
    if t.mlflow and not importlib.util.find_spec("mlflow"):
        problems.append("train.mlflow: needs the package mlflow: pip install -e '.[mlflow]'")
    if t.nesterov and t.momentum == 0:
        problems.append("train.nesterov: needs train.momentum greater than 0")
    if not 0 <= t.min_workers <= t.num_workers:
        problems.append(f"train.min_workers: {t.min_workers} must lie between 0 and train.num_workers {t.num_workers}")
    if not 0 <= t.label_smoothing < 1:
        problems.append(f"train.label_smoothing: {t.label_smoothing} must lie in [0, 1)")
    if t.batch_size < t.num_workers:
        problems.append(f"train.batch_size: {t.batch_size} is smaller than train.num_workers {t.num_workers}")
    if config.faces.scale_factor <= 1:
        problems.append(f"faces.scale_factor: {config.faces.scale_factor} must be greater than 1")
    if config.faces.detector == "yunet" and not config.faces.model:
        problems.append("faces.model: detector yunet needs its model file")
    f = config.split
    if f.folds and (f.folds < 3 or f.by in ("official", "test")):
        problems.append(f"split.folds: {f.folds} with split.by {f.by}; at least 3 folds (test, val, train), and not "
                        "with split.by official or test")
    if not 0 <= f.fold < max(1, f.folds):
        problems.append(f"split.fold: {f.fold} must lie in [0, {max(1, f.folds)})")
    problems += _tune_problems(config.tune)
    p = config.protocol
    least = 3 if p.kind == "folds" else 1
    if p.repeats < least or p.parallel < 0:
        problems.append(f"protocol: {p.kind} needs repeats ({p.repeats}) of at least {least} and parallel "
                        f"({p.parallel}) of at least 0")
    unnamed = [s.root for s in config.evaluate.also if not _is_plain(s.name)]
    if unnamed or len({s.name for s in config.evaluate.also}) < len(config.evaluate.also):
        problems.append(f"evaluate.also: each data set needs a plain name of its own (without: {unnamed or 'twins'})")
    groups = {"dataset", "subject", "sequence", *config.data.table.group_columns}
    for group in set(config.evaluate.groups) - groups:
        problems.append(f"evaluate.groups: unknown column {group!r}; known: {', '.join(sorted(groups))} (more by "
                        "data.table.group_columns)")
    problems += _storage_problems(config.storage)
    if config.retrain and not config.labels:
        problems.append("retrain: needs labels")
    if config.faces.enlarge < 0:
        problems.append(f"faces.enlarge: {config.faces.enlarge} must not be negative")
    if not 0 <= config.data.fer2013.min_agreement <= 1:
        problems.append(f"data.fer2013.min_agreement: {config.data.fer2013.min_agreement} must lie in [0, 1]")
    ck = config.data.ckplus
    if not 0 <= ck.neutral_below <= ck.expression_above <= 100:
        problems.append(f"data.ckplus: needs 0 <= neutral_below ({ck.neutral_below}) <= expression_above "
                        f"({ck.expression_above}) <= 100")
    if problems:
        raise ConfigError("; ".join(problems))
    return config


def _storage_problems(uri: str) -> list[str]:
    if "://" in uri and not uri.startswith(("file:///", "s3://")):
        return [f"storage: {uri} is of an unknown kind; use a folder, file:///... or s3://bucket/prefix"]
    if uri.startswith("s3://") and not uri.removeprefix("s3://").partition("/")[0]:
        return [f"storage: {uri} names no bucket; use s3://bucket/prefix"]
    if uri.startswith("s3://") and "?" in uri:
        return [f"storage: {uri} has a query; endpoint and region come from the AWS environment (AWS_ENDPOINT_URL)"]
    return []


def _tune_problems(u: TuneConfig) -> list[str]:
    problems = []
    for key, least in (("num_trials", 1), ("max_epochs", 1), ("grace_epochs", 1), ("reduction_factor", 2),
                       ("grid_points", 1), ("budget_epochs", 0), ("budget_minutes", 0), ("max_concurrent", 0)):
        if not getattr(u, key) >= least:
            problems.append(f"tune.{key}: {getattr(u, key)} must be at least {least}")
    if u.grace_epochs > u.max_epochs:
        problems.append(f"tune.grace_epochs: {u.grace_epochs} must not exceed tune.max_epochs {u.max_epochs}")
    for key, low, high in (("lr", 0, math.inf), ("momentum", -1, 1), ("weight_decay", 0, math.inf),
                           ("label_smoothing", -1, 1)):
        ends = getattr(u, key)
        if ends and not (len(ends) == 2 and low < ends[0] <= ends[1] < high):
            problems.append(f"tune.{key}: {ends} must be [lowest, highest] between {max(low, 0):g} and {high:g}")
    if not u.momentum or u.momentum[0] < 0:
        problems.append(f"tune.momentum: {u.momentum} must be [lowest, highest] in [0, 1)")
    problems += [f"tune.backbones: unknown backbone {b!r}; known: {', '.join(BACKBONES)}, timm:NAME"
                 for b in u.backbones if b not in BACKBONES and not b.startswith("timm:")]
    problems += [f"tune.batch_sizes: {b} must be at least 1" for b in u.batch_sizes if b < 1]
    return problems


def _is_plain(name: str) -> bool:
    """Whether a name can be a folder's, of a path and of a URI, and no option of a command."""
    return bool(re.fullmatch(r"\w[\w .+-]*", name))


# s3://KEY:SECRET@bucket (a secret may hold a slash), https://TOKEN@host, https://host/x?secret_key=...
_CREDENTIALS = re.compile(r"[\w+.-]+://([^/]*@|[^/]*:.*@|.*[?&][^=&]*(secret|password|token|credential|signature|"
                          r"access_?key)[^=&]*=)", re.IGNORECASE | re.DOTALL)
_ENVIRONMENT = {"train.mlflow": "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"}


def _secrets(tree, key: str = "") -> list[str]:
    """Keys whose URI carries credentials."""
    if isinstance(tree, dict):
        return [found for k, v in tree.items() for found in _secrets(v, f"{key}.{k}".lstrip("."))]
    if isinstance(tree, list):
        return [found for i, v in enumerate(tree) for found in _secrets(v, f"{key}[{i}]")]
    return [key] if isinstance(tree, str) and _CREDENTIALS.match(tree) else []


def to_dict(config) -> dict:
    """The resolved configuration as plain values, for YAML and JSON."""
    return dataclasses.asdict(config)


def _value(config: Config, key: str):
    for part in key.split("."):
        config = getattr(config, part)
    return config
