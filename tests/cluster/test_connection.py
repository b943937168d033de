"""A Ray of the job's own: no other machine reaches it, only this user its token, and its workers ask no other Ray."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cluster.conftest import environment

LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
PROGRAM = """
import os, subprocess, sys
sys.path.insert(0, {tests!r})
from fer_ray.cli import connection
from cluster import test_connection
connection.connect(num_cpus=2)
import ray
another = subprocess.Popen([sys.executable, "-c", {another!r}], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
another.stdout.readline()
# a worker is there too, which asks its own Ray
asked = ray.get(ray.remote(lambda: [node.node_id for node in ray.util.state.list_nodes()]).remote())
print("nodes of its own:", asked == [ray.get_runtime_context().get_node_id()])
another.communicate()
print("open:", test_connection.open_ports(), flush=True)
print("processes:", len(test_connection.family()), flush=True)
"""
ANOTHER = "import ray; ray.init('local', num_cpus=1, include_dashboard=False); print(flush=True); input()"


def family() -> set[int]:
    """This process and all that it has started, by the session that they share."""
    children, found = {}, {os.getpid()}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            children.setdefault(int(folder.joinpath("stat").read_text().rpartition(")")[2].split()[1]), []).append(
                int(folder.name))
        except OSError:
            continue
    waiting = [os.getpid()]
    while waiting:
        new = children.get(waiting.pop(), [])
        found |= set(new)
        waiting += new
    return found


def open_ports() -> list[str]:
    """Sockets of these processes that listen on an address of the network: process, address and port."""
    owner = {}
    for pid in family():
        for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                owner[os.readlink(descriptor)] = pid
            except OSError:
                continue
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            local, state, inode = (line.split()[column] for column in (1, 3, 9))
            address, _, port = local.partition(":")
            if state == "0A" and address not in LOOPBACK and (pid := owner.get(f"socket:[{inode}]")):
                name = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:200]
                found.append(f"{name} {address}:{int(port, 16)}")
    return found


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """The home and the output of a process that has started a Ray of its own."""
    home = tmp_path_factory.mktemp("home")
    env = {key: value for key, value in environment().items() if not key.startswith("RAY_AUTH_TOKEN")}
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(tests=str(Path(__file__).parents[1]), another=ANOTHER)],
                          env=env | {"HOME": str(home)}, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return home, done.stdout


def test_nothing_listens_to_the_network(started):
    _, output = started
    assert "open: []\n" in output
    assert int(output.rpartition("processes: ")[2]) > 5  # GCS, raylet, dashboard, ... were looked at


def test_a_worker_that_asks_about_the_cluster_asks_its_own(started):
    assert "nodes of its own: True\n" in started[1]


def test_only_the_user_can_read_the_token(started):
    home, _ = started
    token = home / ".ray/auth_token"
    assert len(token.read_text()) == 64 and stat.S_IMODE(token.stat().st_mode) == 0o600
    assert [path.name for path in (home / ".ray").iterdir()] == ["auth_token"]

