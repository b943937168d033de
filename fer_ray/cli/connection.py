"""Join a Ray cluster, or start Ray on this machine, quietly."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path

from fer_ray import storage
from fer_ray.cli import ending
from fer_ray.config import ConfigError

ROOT = Path(__file__).resolve().parents[2]

# Ray's own progress is for developers of Ray; must be set before Ray is imported. Train's controller takes a report
# each time it polls: every 2 s by itself, which short epochs wait for; every 0.2 s takes the network a few percent of
# two cores. Tune would answer Ctrl-C with the result of half a search. Several runs side by side start more processes
# than Ray warns of. A task's error is told by the one result that is asked for, not again by the others.
QUIET = {"RAY_TRAIN_ENABLE_PRINT_PATCH": "0", "RAY_DATA_DISABLE_PROGRESS_BARS": "1", "RAY_DEDUP_LOGS": "0",
         "RAY_AIR_NEW_OUTPUT": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "TUNE_DISABLE_SIGINT_HANDLER": "1",
         "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1.0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
         "RAY_AUTH_MODE": "token", "AWS_RETRY_MODE": "standard", "AWS_MAX_ATTEMPTS": str(storage.ATTEMPTS),
         "RAY_worker_maximum_startup_concurrency": "8", "RAY_IGNORE_UNHANDLED_ERRORS": "1",
         "PYTHONPATH": str(ROOT)}
# A step of a network takes and frees gigabytes in blocks of tens of MB. glibc gives each of them back to the kernel and
# takes it again, zeroed page by page: on two CPU cores a third of the step (scripts/bench_train.py). So workers keep
# what they have, in one arena, since those of threads cannot hold such blocks.
HEAP = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**34), "MALLOC_ARENA_MAX": "1"}


def connect(**options) -> None:
    """Join the cluster of RAY_ADDRESS, or start Ray on this machine with `options` of ray.init.

    Raises: ConfigError if the cluster has no CPU for tasks and none will come.
    """
    settings = {k: v if k == "PYTHONPATH" else os.environ.get(k, v) for k, v in (QUIET | HEAP).items()}
    os.environ.update({k: settings[k] for k in QUIET if k != "PYTHONPATH"})
    import ray

    # with its dashboard: Ray asks it whether a trial's trainer has ended, before it frees what that held
    ray.init(address=os.environ.get("RAY_ADDRESS") or "local", logging_level="error", log_to_driver=False,
             ignore_reinit_error=True, runtime_env={"env_vars": settings}, **options)
    ending.listen()
    import ray.data
    import ray.train

    from fer_ray.train import resources

    if not ray.cluster_resources().get("CPU"):
        if not resources.has_autoscaler(ray.nodes()):
            raise ConfigError("the cluster has no CPU for tasks; start a node by ray start --address ...")
        print("no node for tasks yet: the autoscaler starts them as they are needed", flush=True)
    ray.data.DataContext.get_current().enable_progress_bars = False
    warnings.filterwarnings("ignore", message=".*ray_remote_args", category=DeprecationWarning)
    for name in ("ray.data", "ray.train"):  # after the imports, which set the levels
        logging.getLogger(name).setLevel(logging.ERROR)
