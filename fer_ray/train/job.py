"""What a training hands to its workers: settings, and references to what lies in Ray's object store."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from fer_ray import storage
from fer_ray.config import Config

if TYPE_CHECKING:
    import pandas as pd
    import ray


@dataclass(frozen=True)
class SplitInput:
    """How a worker gets the batches of one split (`loop.open_source`)."""

    kind: Literal["cached", "features", "streamed"]
    """`cached`: decoded crops. `features`: inputs of the last layer, where that alone is trained. `streamed`: crops
    that are read and decoded anew in each epoch."""
    references: list[ray.ObjectRef] = field(default_factory=list)
    """Of cached crops (`batches.Crops`) or of features and labels: one reference for each part of the prepared set."""
    prepared: str = ""
    """Streamed: URI of the prepared set."""
    why: str = ""
    """In words, why it is this kind."""
    index: pd.DataFrame | None = None
    """Streamed: the columns row, part, part_row and expression of the split's index rows."""


@dataclass(frozen=True)
class TrainingInput:
    """What all trainings of one network on one prepared set share: made once, kept once on each node."""

    data_fingerprint: str
    """Fingerprint of the prepared set, which a checkpoint names as what it was trained on."""
    start_state: ray.ObjectRef
    """State dict, as arrays, that training starts from."""
    start_loaded: ray.ObjectRef
    """Nothing; `ray.get` of it raises what kept the start state from being loaded."""
    train: SplitInput
    """What is trained on."""
    val: SplitInput
    """What chooses the best checkpoint."""


@dataclass(frozen=True)
class TrainJob:
    """One training, as each of its workers gets it."""

    config: Config
    """The whole configuration; checkpoints carry it."""
    input: TrainingInput
    """Weights and data."""
    threads: int
    """CPU threads of a worker."""

    @property
    def run(self) -> str:
        """URI of the run's folder."""
        return run_uri(self.config)


def run_uri(config: Config) -> str:
    """The folder of the run that `config` names."""
    return storage.join(config.storage, "runs", config.name)
