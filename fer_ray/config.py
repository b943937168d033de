"""Every option of every verb with its type, legal range, default, unit and meaning: one tree of frozen dataclasses.

The legal range is part of a field's type (`fer_ray.values`), the meaning is the text below it. `fer_ray.checks` refuses
what is out of range, `--help` and docs/options.md show both, so nothing is written twice.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge

from fer_ray.data_config import DataConfig, FacesConfig, SourceConfig, SplitConfig
from fer_ray.errors import UserError
from fer_ray.values import (
    AtLeast0,
    AtLeast1,
    Backbone,
    BelowOne,
    Device,
    Name,
    NotNegative,
    Port,
    Positive,
    Seed,
    Uri,
    Url,
    Weights,
)


class ConfigError(UserError):
    """The configuration is wrong; the message names file, key, value and what would be right."""


@dataclass(frozen=True)
class TrainConfig:
    """Fine-tuning by SGD with momentum. The paper's own values stand in jobs/configs/paper.yaml."""

    backbone: Backbone = "alexnet"
    """Network to fine-tune; timm:NAME is any network of timm (extra `timm`). With @SIDE, such as
    efficientnet_lite0@112, it reduces its images of 224 px to so many, which takes less time. tiny learns little, and
    shows in seconds whether all works."""
    weights: Weights = "imagenet"
    """Initial weights: `imagenet`, `none` (random), the path or URI of a state dict as torchvision's, or the folder of
    one of our own checkpoints, whose last layer is kept."""
    layers: Literal["all", "head"] = "all"
    """What is trained: all layers, or the last one alone on features that are computed once, without augmentation."""
    epochs: AtLeast1 = 30
    """Largest number of epochs to train."""
    batch_size: AtLeast1 = 32
    """Images per optimiser step, over all workers together."""
    micro_batches: AtLeast1 = 1
    """Number of parts into which each worker cuts its images of a batch, to save memory (gradient accumulation)."""
    lr: Positive = 0.01
    """Learning rate at its highest, after warm-up and before it falls."""
    lr_per_256: bool = False
    """Linear scaling rule: `lr` is that of batches of 256 images and is scaled to `batch_size`."""
    body_lr: Positive = 0.3
    """Learning rate of the layers before the last one, as a part of `lr`: they come with weights, the last one is new.
    """
    momentum: BelowOne = 0.9
    """Momentum of SGD."""
    nesterov: bool = False
    """Use Nesterov's form of momentum."""
    weight_decay: NotNegative = 5e-4
    """L2 penalty on weights; there is none on biases and normalisation layers."""
    schedule: Literal["constant", "step", "cosine"] = "cosine"
    """Course of the learning rate. `step`: it falls to a tenth after every `step_epochs`. `cosine`: it falls to 0."""
    step_epochs: AtLeast1 = 10
    """Epochs between two steps of `schedule step`."""
    warmup_epochs: AtLeast0 = 1
    """Number of first epochs over which the learning rate grows linearly."""
    clip_norm: NotNegative = 0.0
    """Largest norm of the gradient; longer ones are clipped. 0: none is."""
    label_smoothing: BelowOne = 0.1
    """Part of the target probability that is spread over all classes."""
    average: BelowOne = 0.99
    """Validate, keep and use a moving average of the weights, of which a step leaves this part (EMA); 0: none."""
    flip_average: bool = True
    """Wherever the trained network is used, score an image by the mean of its logits and those of its mirror image: it
    recognises better and takes twice as long. Checkpoints and exports keep this."""
    class_weights: Literal["none", "sqrt", "balanced"] = "sqrt"
    """Weight of a class in the loss: equal for all, or the inverse of (the square root of) its frequency."""
    sampling: Literal["natural", "balanced"] = "natural"
    """Images of an epoch: each one once, or drawn so that all classes are equally frequent.
    The latter needs `class_weights` none: together they would make up for rare classes twice."""
    augmentation: Literal["paper", "strong"] = "strong"
    """How training images are changed at random: a crop, a flip, grey for one in ten and a rotation of up to 1 degree,
    as in the paper; or `strong`, with rotations of up to 12 degrees, another size, another light and hidden parts."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Number format of the forward pass; `auto`: bf16 on GPUs that have it, else fp32. Processors need AVX-512 for
    bf16; of those with its own instructions (AVX512_BF16, AMX) some are faster with it and some slower."""
    compile: bool = False
    """Compile the network (torch.compile), which starts slowly and then runs faster on GPUs."""
    patience: AtLeast1 = 10
    """Training stops after this many epochs without a better balanced accuracy on val."""
    seed: Seed = 0
    """Seed of new weights, of the order of images, of augmentation and of dropout."""
    device: Device = "auto"
    """Where the networks are trained: `cuda` on one GPU a worker, `cpu`, or `auto`: on GPUs if the cluster has any."""
    num_workers: AtLeast0 = 0
    """Number of training processes (DDP); 0: one for each GPU of the cluster, shared out among trainings that run side
    by side, and a single one on CPUs."""
    min_workers: AtLeast0 = 0
    """Elastic training: go on with as few workers as this when nodes are lost; 0: always with `num_workers`."""
    feed: Literal["auto", "memory", "stream"] = "auto"
    """How workers get their images. `memory`: decoded once, and kept on each node. `stream`: decoded and augmented anew
    in each epoch by all CPUs of the cluster. `auto`: streamed if they do not fit into memory, or if nodes without a
    training worker have CPUs, unless they fit into a GPU. What the network learns is the same."""
    cache_gb: NotNegative = 8.0
    """Decoded crops that may stay in a node's memory, in GiB."""
    checkpoint_every_steps: AtLeast0 = 0
    """Steps between two checkpoints within an epoch; 0: one at its end only."""
    num_to_keep: AtLeast1 = 2
    """Number of checkpoints kept in storage, the best ones and the latest."""
    max_failures: AtLeast0 = 3
    """How often training starts again from the last checkpoint after a worker died."""
    mlflow: Url = ""
    """URI of an MLflow server that gets each epoch's numbers too (extra `mlflow`); empty: none."""
    from_tune: Name = ""
    """Name of a finished search (jobs/tune.py) in the same storage, whose best values replace those of this section;
    empty: none."""


@dataclass(frozen=True)
class TuneConfig:
    """The search over learning rate and momentum (jobs/tune.py). Its trials take all other values from `train`."""

    searcher: Literal["tpe", "gp", "random", "grid"] = "tpe"
    """What chooses the points: Optuna's tree-structured Parzen estimator (tpe) or Gaussian process (gp), chance, or a
    full grid. All but the grid begin with `train.lr` and `train.momentum`."""
    scheduler: Literal["asha", "hyperband", "median", "none"] = "asha"
    """What ends hopeless trials early: asynchronous successive halving (asha), HyperBand, the median of all trials, or
    nothing."""
    num_trials: AtLeast1 = 16
    """Number of trials; a grid has as many as it has points."""
    max_epochs: AtLeast1 = 9
    """Epochs of a trial that is not ended early."""
    grace_epochs: AtLeast1 = 1
    """Epochs that every trial gets before it may be ended."""
    reduction_factor: Annotated[int, Ge(2)] = 4
    """ASHA, HyperBand: one in this many trials goes on, after `grace_epochs` times each power of this number."""
    budget_epochs: AtLeast0 = 0
    """The search ends after this many epochs of all trials together; 0: no limit."""
    budget_minutes: NotNegative = 0.0
    """The search ends after this many minutes; 0: no limit."""
    max_concurrent: AtLeast0 = 0
    """Number of trials side by side; 0: as many as the cluster has GPUs for, on CPUs one for every four cores."""
    plane: Literal["effective", "plain"] = "effective"
    """Axes of the search. `effective`: the effective learning rate lr / (1 - momentum), and 1 - momentum, both on
    logarithmic scales. `plain`: lr on a logarithmic scale, and momentum."""
    lr: list[Positive] = field(default_factory=list)
    """Lowest and highest learning rate, in the plane `effective` of lr / (1 - momentum); empty: a range that suits the
    backbones."""
    momentum: list[BelowOne] = field(default_factory=lambda: [0.0, 0.99])
    """Lowest and highest momentum."""
    backbones: list[Backbone] = field(default_factory=list)
    """Networks to choose from; empty: `train.backbone` alone."""
    batch_sizes: list[AtLeast1] = field(default_factory=list)
    """Batch sizes to choose from; empty: `train.batch_size` alone."""
    weight_decay: list[Positive] = field(default_factory=list)
    """Lowest and highest weight decay, on a logarithmic scale; empty: `train.weight_decay` alone."""
    label_smoothing: list[BelowOne] = field(default_factory=list)
    """Lowest and highest label smoothing; empty: `train.label_smoothing` alone."""
    grid_points: AtLeast1 = 4
    """Number of points on each axis of the grid, both ends included."""
    seed: Seed = 0
    """Seed of the choice of points; the trials train with `train.seed`."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Scoring a checkpoint on the test split."""

    checkpoint: Uri = ""
    """Folder of the checkpoint; empty: the best one of the run `name`."""
    batch_size: AtLeast1 = 64
    """Images per forward pass."""
    device: Device = "auto"
    """Where the checkpoint is scored: `cuda`, one GPU a task, `cpu`, or `auto`: on GPUs if the cluster has any."""
    floor: bool = False
    """Also score a logistic regression on frozen ImageNet features of the same backbone and split, which fine-tuning
    should beat."""
    also: list[SourceConfig] = field(default_factory=list)
    """Further data sets to score whole, each with `kind`, `root` (relative paths are below `data.root`) and `name`:
    another data set, or the photographs of one new person (the paper's Fig. 16)."""
    groups: list[str] = field(default_factory=list)
    """Further columns for each of whose values there is a result of its own: subject, sequence, or one of
    `data.table.group_columns`. By data set, by colour and by whether a face was found there always is one."""


@dataclass(frozen=True)
class PredictConfig:
    """Expressions of the faces in photographs and videos (jobs/predict.py), into `predictions/NAME/` of the storage."""

    images: Uri = ""
    """Photographs and videos: a folder, a bucket, one file, a glob such as 'photos/**/*.jpg', or a table (CSV, Parquet)
    whose column `data.table.image_column` holds paths that start in the table's folder."""
    checkpoint: Uri = ""
    """Folder of the checkpoint, or an ONNX file of jobs/export.py, which computes on CPUs and is faster there; empty:
    the best checkpoint of the run `name`."""
    faces: Literal["all", "largest"] = "all"
    """Faces of each photograph: all, or the largest one alone, which is found faster."""
    tilt: bool = False
    """Where no face is found, turn the photograph by 30 degrees to either side and search again."""
    min_face: AtLeast0 = 0
    """Smallest side of a face in px; smaller ones are left out."""
    device: Device = "auto"
    """Where the network computes: `cuda`, a worker on each GPU, `cpu`, or `auto`: on GPUs if the cluster has any."""
    every: NotNegative = 0.2
    """Seconds of a video between two frames that are looked at; 0: every frame is."""
    smooth: NotNegative = 0.0
    """Seconds over which each face's probabilities in a video are averaged (time constant of an exponential moving
    average); 0: they are not."""
    annotate: bool = False
    """Also write copies of the photographs and videos with boxes and expressions, and pages that show them."""


@dataclass(frozen=True)
class ExportConfig:
    """A trained network as files that run without fer_ray (jobs/export.py), in `exports/NAME/` of the storage."""

    checkpoint: Uri = ""
    """Folder of the checkpoint; empty: the best one of the run `name`."""
    formats: list[Literal["onnx", "onnx_fp16", "onnx_int8", "torch"]] = field(
        default_factory=lambda: ["onnx", "torch"])
    """Files to write: ONNX in float32, float16 or int8 (calibrated on validation images), and PyTorch's own format
    (`torch.export`). Each is scored on the test split beside the original (extra `onnx`)."""


@dataclass(frozen=True)
class ServeConfig:
    """The service and its web page (jobs/serve.py).

    `predict` names its network, and the faces that it looks for. Its token comes from the environment variable
    FER_RAY_SERVE_TOKEN, which must be set unless `host` is the loopback.
    """

    host: str = "127.0.0.1"
    """Address to listen on: 127.0.0.1 answers this machine alone, 0.0.0.0 the network."""
    port: Port = 8000
    """Port to listen on."""
    replicas: AtLeast0 = 0
    """Processes with the network; 0: one for each GPU, or for every two CPUs. On CPUs they find the faces too."""
    max_mb: Positive = 20.0
    """Largest request in MB."""
    max_megapixels: Positive = 50.0
    """Largest image in millions of pixels, which is known before an image is decoded."""
    max_queued: AtLeast1 = 64
    """Requests that may wait while all processes are busy; more are refused at once (503)."""
    timeout_s: Positive = 30.0
    """Time that a request may take, waiting included, in seconds; then it is given up (408)."""


@dataclass(frozen=True)
class ProtocolConfig:
    """How a score is made from several runs (jobs/crossval.py)."""

    kind: Literal["holdout", "folds", "seeds", "paper_vs_honest"] = "folds"
    """`holdout`: one run. `folds`: each fold is the test split once. `seeds`: the same split, trained with several
    seeds. `paper_vs_honest`: once split by image, as in the paper, and once by subject, all else being equal;
    by subject in folds where one split would test fewer than ten people."""
    repeats: AtLeast1 = 5
    """Number of folds or of seeds. Ten folds train on 80 % of the images, as a single split does."""
    parallel: AtLeast0 = 0
    """Number of runs that train side by side; 0: as many as the cluster has CPUs (or GPUs) for."""


@dataclass(frozen=True)
class CardConfig:
    """What only you can say in the model card of the report."""

    intended_use: str = "Research on facial expression recognition."
    """What the model is for."""
    limits: str = ""
    """What it must not be used for and for whom it was not tested, beyond what the report says by itself."""
    provenance: str = ""
    """Where the data comes from and who agreed to its use."""
    licence: str = ""
    """Licence of each data set and, following from that, of the model."""


@dataclass(frozen=True)
class CompareConfig:
    """Several backbones over the same epochs and split (jobs/compare.py)."""

    backbones: list[Backbone] = field(default_factory=lambda: ["alexnet", "vgg19", "resnet152"])
    """Networks to compare (the paper's Fig. 12)."""


@dataclass(frozen=True)
class PaperConfig:
    """The paper's study on your data, and what its scores are worth on new people (jobs/paper.py)."""

    scale: Literal["full", "small"] = "full"
    """`full`: as in the paper, 30 epochs of each network of `compare.backbones` and 50 of `train.backbone`, and ten
    folds by subject. `small`: the same steps in minutes, with small networks and few epochs; without `data.root` on
    drawn faces. How the paper trains and crops is known; `train` and `faces` say how our own recipe does."""
    new_face: Uri = ""
    """Photographs of one person who is in no other data set (the paper's Fig. 16): a folder or s3://bucket/prefix with
    a folder for each expression; empty: none."""


@dataclass(frozen=True)
class Config:
    """All options of fer_ray. Every verb takes all and uses some."""

    name: Name = "default"
    """Name of the run. The same name in the same storage goes on with it."""
    storage: Uri = "fer_ray_output"
    """Root of all output: a folder, file:///... or s3://bucket/prefix. Endpoint, region and credentials of S3 come from
    the AWS environment and profiles."""
    prepared: Name = ""
    """Name of the prepared set, so that several runs can use one; empty: the run's name."""
    replace: bool = False
    """If the prepared set of that name was made of other images or with other `faces` options: delete it, with the
    splits below it, and make it anew. By default such a set is left as it is, and preparing ends with an error."""
    data: DataConfig = field(default_factory=DataConfig)
    faces: FacesConfig = field(default_factory=FacesConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    predict: PredictConfig = field(default_factory=PredictConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    serve: ServeConfig = field(default_factory=ServeConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)
    paper: PaperConfig = field(default_factory=PaperConfig)
    card: CardConfig = field(default_factory=CardConfig)
    labels: bool = False
    """Also look for wrong labels (jobs/audit.py), by the predictions of folds that are trained for this."""
    retrain: bool = False
    """Train the folds again without the doubtful labels and compare (jobs/audit.py --labels)."""


def to_dict(config: Any) -> dict[str, Any]:
    """The resolved configuration, or a section of it, as plain values for YAML and JSON."""
    return dataclasses.asdict(config)
