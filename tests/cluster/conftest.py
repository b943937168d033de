import contextlib
import io
import os
import runpy
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from preparing import in_this_process

REPO = Path(__file__).parents[2]
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # epochs of a second wait for the controller


sys.path.insert(0, str(REPO / "jobs"))
running = 0  # CPUs of the Ray that the last test left


@contextlib.contextmanager
def ray_on(num_cpus: int):
    """A Ray on this machine. It stays for the next test that wants the same: its start takes as long as a test."""
    global running
    from fer_ray.cli import connection

    if running != num_cpus:
        end_ray()
        os.environ["RAY_ADDRESS"] = "local"
        connection.connect(num_cpus=num_cpus)
        del os.environ["RAY_ADDRESS"]
        running = num_cpus
    try:
        yield
    except BaseException:
        end_ray()  # nobody knows what that left
        raise


def end_ray() -> None:
    """Two Rays at once on one host get into each other's way."""
    global running
    if running:
        import ray

        ray.shutdown()
        running = 0


@contextlib.contextmanager
def nodes_of(*cpus: int):
    """Several Ray nodes on this machine, the first of them the head; yields the cluster and the others."""
    import ray
    from ray.cluster_utils import Cluster

    from fer_ray.cli import connection

    end_ray()
    # a dead node answers at once that it is dead; by itself Ray asks 5 times, every 3 s, before it believes it
    asks = {"health_check_period_ms": 500, "health_check_failure_threshold": 2, "health_check_initial_delay_ms": 0}
    with socket.create_server(("127.0.0.1", 0)) as free:  # the usual one may be taken by another process's Ray
        board = free.getsockname()[1]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": cpus[0], "dashboard_port": board,
                                                            "_system_config": asks})
    try:
        others = [cluster.add_node(num_cpus=n) for n in cpus[1:]]
        os.environ["RAY_ADDRESS"] = cluster.address
        connection.connect()
        yield cluster, others
    finally:
        os.environ.pop("RAY_ADDRESS", None)
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(scope="session")
def prepared(sample_of, tmp_path_factory):
    """The configuration of a small, quick training on the prepared set `set` of a few people.

    For tests that add runs of their own names to the same storage.
    """
    from fer_ray.config import Config, TrainConfig
    from fer_ray.data import prepare
    from fer_ray.data.sources import read_manifest
    from fer_ray.data_config import DataConfig

    root = tmp_path_factory.mktemp("prepared")
    data = DataConfig("auto", str(sample_of(root / "data", 4)))
    config = Config(name="set", storage=str(root / "out"), prepared="set", data=data,
                    train=TrainConfig(backbone="tiny", weights="none", batch_size=8, lr=0.01, epochs=3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "_on_workers", in_this_process)  # faster than the start of a Ray
        prepare.prepare(config, read_manifest(config.data))
    return config


def wait_for(condition: Callable[[], object], seconds: float = 100) -> None:
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline, "it did not happen in time"
        time.sleep(0.02)


def run_job(verb: str, *options: str, cwd: Path, **shell: str) -> subprocess.CompletedProcess[str]:
    """Run a job's file in this process, on the Ray of the tests, from another folder and with further variables.

    As a process of its own it would start new workers, each of which imports PyTorch anew: ten seconds a job. Ray's
    workers here have other working directories than `cwd`, as they may have on a cluster.
    """
    file = str(REPO / "jobs" / f"{verb}.py")
    output, errors = io.StringIO(), io.StringIO()
    code: int | str | None = 0
    with ray_on(2), pytest.MonkeyPatch.context() as patch:
        for name, value in shell.items():
            patch.setenv(name, value)
        patch.chdir(cwd)
        patch.setattr("sys.argv", [file, *options])
        patch.setattr("ray.shutdown", lambda: None)  # the next test goes on with it
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            try:
                runpy.run_path(file, run_name="__main__")
            except SystemExit as end:
                code = end.code
    if isinstance(code, str):  # what Python does with it when it ends a process
        errors.write(f"{code}\n")
        code = 1
    return subprocess.CompletedProcess([verb, *options], code or 0, output.getvalue(), errors.getvalue())


def command(verb: str, *options: str) -> list[str]:
    return [sys.executable, str(REPO / "jobs" / f"{verb}.py"), *options]


def joining() -> dict[str, str]:
    """For a process that joins the Ray of the tests, which runs (`ray_on`)."""
    import ray

    address = ray.get_runtime_context().gcs_address
    # Ray replaces a loopback address by the machine's own, where a Ray that listens on loopback only does not answer.
    # Ours does so unless something has imported ray before `connect`, as other test files may have.
    loopback = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"} if address.startswith("127.") else {}
    return environment(RAY_ADDRESS=address, **loopback)


def environment(**more: str) -> dict[str, str]:
    """For a process that joins the Ray of RAY_ADDRESS, or else starts a Ray of its own.

    What this process has set for a Ray of its own stays here: with it, no node can join another's.
    """
    from fer_ray.cli import connection

    if "RAY_ADDRESS" not in more:
        end_ray()
    return {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS" and k not in connection.LOCAL} | more
