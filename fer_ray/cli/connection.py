"""Join a Ray cluster, or start Ray on this machine: quiet, private to this machine, and watched."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import tempfile
import warnings
from collections.abc import Generator
from pathlib import Path

from fer_ray import scratch, storage
from fer_ray.cli import ending, watchdog
from fer_ray.config import ConfigError
from fer_ray.errors import UserError

ROOT = Path(__file__).resolve().parents[2]

# Environment of the driver and of every worker; a variable that the user has set stays. Must be set before Ray is
# imported, which reads some of them then.
SETTINGS = {
    # Ray's own progress bars and messages are for developers of Ray.
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DEDUP_LOGS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # An error of a task is shown by whoever asks for its result, not again for each result that nobody asks for.
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
    # Tune would answer Ctrl-C with the result of half a search.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Train's controller takes the workers' reports each time it polls. By default that is every 2 s, for which short
    # epochs and the end wait; every 0.2 s would cost a few percent of two cores.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # Train's watcher tells the loop that a node will be taken away. Ours does not ask: each group would start one more
    # process. A worker that dies with its node is told from one that fails without it, too.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # Ray would hide all GPUs from tasks that ask for none.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Several runs side by side start more processes at once than Ray does by default.
    "RAY_worker_maximum_startup_concurrency": "8",
    # Whoever may speak to Ray may run code.
    "RAY_AUTH_MODE": "token",
    "AWS_RETRY_MODE": "standard",
    "AWS_MAX_ATTEMPTS": str(storage.ATTEMPTS),
}
# A training step takes and frees gigabytes in blocks of tens of MB. By default glibc gives each of them back to the
# kernel and takes it again, zeroed page by page: on two CPU cores a third of the step (scripts/bench_train.py). So
# workers keep what they have, in one arena, since the arenas of threads cannot hold such blocks.
HEAP = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**34), "MALLOC_ARENA_MAX": "1"}
# Further ones for a Ray of this job's own.
LOCAL = {
    # the workers' PYTHONPATH is the project alone, whatever the user's is
    "PYTHONPATH": str(ROOT),
    # It listens on the loopback interface only, as Ray itself does on Windows and macOS: the first variable says that
    # no other machine joins. PyTorch's workers talk to each other by libraries with settings of their own.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "GLOO_SOCKET_IFNAME": "lo",
    "NCCL_SOCKET_IFNAME": "lo",
    # By default torch.compile keeps what it has compiled in the temporary folder, which here ends with the job.
    "TORCHINDUCTOR_CACHE_DIR": os.path.expanduser("~/.cache/torchinductor"),
}
SETUP_OF_WORKERS = "fer_ray.cli.worker_setup.remember_cluster"
CONNECT_TIMEOUT_S = 10.0


class ConnectionFailedError(UserError):
    """Ray could not be started or joined; the message says why."""


def connect(output: str = "", **options) -> None:
    """Join the cluster of RAY_ADDRESS, or start Ray on this machine with `options` of ray.init.

    A cluster that is joined gets the code of this process, so that its machines need not hold the project.

    `output`: URI that all nodes are to write to.

    Raises: ConnectionFailedError; ConfigError if the cluster has no CPU for tasks and none will come, or as
        `require_shared`.
    """
    address = os.environ.get("RAY_ADDRESS") or "local"
    settings = SETTINGS | HEAP | (LOCAL if address == "local" else {})
    # any other variable is the user's to set
    settings = {key: value if key == "PYTHONPATH" else os.environ.get(key, value) for key, value in settings.items()}
    os.environ.update({key: value for key, value in settings.items() if key not in HEAP and key != "PYTHONPATH"})
    _keep_token_private(may_create=address == "local")
    import ray

    if not ray.is_initialized():
        # With its dashboard: Ray asks it whether a trial's trainer has ended, before it frees what that held.
        shipped = {} if address == "local" else {"py_modules": [str(ROOT / "fer_ray")]}
        options |= {"logging_level": logging.ERROR, "log_to_driver": False,
                    "runtime_env": {"env_vars": settings, "worker_process_setup_hook": SETUP_OF_WORKERS, **shipped}}
        with _temporary_files_in_scratch() if address == "local" else contextlib.nullcontext():
            _init(address, options)
        ending.listen()
        watchdog.start(patience_s=1.0 if address == "local" else 45.0)
    _silence_libraries()
    _require_cpus()
    if output:
        require_shared(output)


def require_shared(uri: str) -> None:
    """See that all nodes of the cluster see one and the same place.

    Raises: ConfigError if it is a folder of this machine alone: crops or checkpoints that a node wrote would be missing
        on the others, after hours of work.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    others = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes()
              if node["Alive"] and node["NodeID"] != here}
    if uri.startswith("s3://") or not others:
        return
    probe = storage.join(uri, f"probe-{secrets.token_hex(8)}")
    storage.write_bytes(probe, b"")
    try:
        look = ray.remote(num_cpus=0)(storage.exists)
        seen = ray.get([look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(probe)
                        for node in others])
    finally:
        storage.delete_file(probe)
    if blind := [name for name, sees in zip(others.values(), seen, strict=True) if not sees]:
        raise ConfigError(f"storage: {uri} is a folder of this machine, and {len(blind)} of {len(others) + 1} nodes do "
                          f"not see it ({', '.join(sorted(set(blind))[:3])}); use s3://bucket/prefix, or a disk that "
                          "all nodes share")


def _init(address: str, options: dict) -> None:
    """Call ray.init. Raises: ConnectionFailedError."""
    import ray
    import ray.exceptions

    failed = "Ray cannot start on this machine" if address == "local" else f"RAY_ADDRESS {address}: no Ray to join"
    host, colon, port = address.rpartition(":")
    try:
        if colon and port.isdigit() and "/" not in host:
            # Ray would try for more than a minute, and print a line of its C++ log each time
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
        ray.init(address, **options)
    except (OSError, OverflowError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise ConnectionFailedError(f"{failed}: {ending.summary(error)}") from error


def _keep_token_private(may_create: bool) -> None:
    """See to it that only this user can read the token that Ray's processes prove themselves with.

    Ray would write a new one readable for every user of the machine.
    """
    if os.environ["RAY_AUTH_MODE"] != "token" or {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ):
        return
    token = Path.home() / ".ray" / "auth_token"
    try:
        if token.exists():
            status = token.stat()
            if status.st_uid == os.getuid() and status.st_mode & 0o077:
                token.chmod(0o600)
        elif may_create:
            token.parent.mkdir(exist_ok=True)
            # named only when it is written: another job that starts meanwhile must not read half of it
            descriptor, unnamed = tempfile.mkstemp(dir=token.parent)  # with mode 0600
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_hex(32))
            with contextlib.suppress(FileExistsError):
                os.link(unnamed, token)
            os.unlink(unnamed)
    except OSError as error:
        raise ConfigError(f"{token}: {error.strerror}; Ray keeps its token there: make it writable, or name another "
                          "file by RAY_AUTH_TOKEN_PATH") from None


@contextlib.contextmanager
def _temporary_files_in_scratch() -> Generator[None]:
    """Have the processes that start meanwhile, and theirs, put temporary files into this process's own folder.

    Ray ends its processes by SIGKILL, so that they leave theirs behind: its dashboard a folder with a socket each time,
    a worker the checkpoint that it was about to upload. Ray's logs stay where they are by default.
    """
    before = {key: os.environ.get(key) for key in ("TMPDIR", "RAY_TMPDIR")}
    os.environ["RAY_TMPDIR"] = before["RAY_TMPDIR"] or before["TMPDIR"] or "/tmp"
    os.environ["TMPDIR"] = scratch.folder()
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})


def _silence_libraries() -> None:
    import ray.data
    import ray.train

    data_context = ray.data.DataContext.get_current()
    data_context.enable_progress_bars = False
    # Ray Data otherwise says "UDF failed to process a data block" in place of what a function of ours raised.
    data_context.raise_original_map_exception = True
    warnings.filterwarnings("ignore", message=".*ray_remote_args", category=DeprecationWarning)
    # After the imports, which set the levels. Ray Data logs as an error what it then raises: it would be told twice.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    logging.getLogger("ray.train").setLevel(logging.ERROR)


def _require_cpus() -> None:
    import ray

    from fer_ray.train import resources

    if not ray.cluster_resources().get("CPU"):
        if not resources.has_autoscaler(ray.nodes()):
            raise ConfigError("the cluster has no CPU for tasks; start a node by ray start --address ...")
        print("no node for tasks yet: the autoscaler starts them as they are needed", flush=True)
