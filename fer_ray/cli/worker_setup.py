"""What each worker process of a job does before its first task."""

from __future__ import annotations

import os


def remember_cluster() -> None:
    """Set RAY_ADDRESS to the cluster that this worker belongs to.

    Ray's state API looks there. Without it the API looks for a Ray on this machine, and where several run it fails or
    asks another one. Ray Train asks it whether the trainer of a trial has ended: by a wrong answer the CPUs of a trial
    that was ended stay taken for ever, and a search waits for them.
    """
    import ray

    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
