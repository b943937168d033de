"""Ends the job with one line when the Ray processes that it cannot do without have died.

By itself Ray notices after 15 s (raylet) or 60 s (GCS), and then ends the driver from C++, where Python cannot catch
it, with a stack trace of every thread.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time

from fer_ray import progress, scratch

POLL_S = 0.5


def start(patience_s: float) -> None:
    """Watch the GCS and the raylet of the Ray that this process is connected to, until it disconnects.

    Args:
        patience_s: for how long one of them may answer no connection before it counts as dead. On a cluster that may
            start its GCS again it must be long, yet shorter than the 60 s after which Ray ends the driver.
    """
    import ray

    this_node = ray.get_runtime_context().get_node_id()
    raylet = next(node for node in ray.nodes() if node["NodeID"] == this_node)
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    watched = {"its control store (GCS)": (host.strip("[]"), int(port)),
               "its scheduler on this machine (raylet)": (raylet["NodeManagerAddress"], raylet["NodeManagerPort"])}
    threading.Thread(target=_watch, args=(watched, this_node, patience_s), daemon=True, name="watchdog").start()


def _watch(watched: dict[str, tuple[str, int]], node: str, patience_s: float) -> None:
    last_answer = dict.fromkeys(watched, time.monotonic())
    while _still_connected_to(node):
        for process, address in watched.items():
            if _listens(address):
                last_answer[process] = time.monotonic()
            # Ray may have been shut down since: then it is no fault that nobody answers
            elif time.monotonic() - last_answer[process] > patience_s and _still_connected_to(node):
                _end(process)
        time.sleep(POLL_S)


def _still_connected_to(node: str) -> bool:
    import ray

    try:
        return ray.is_initialized() and ray.get_runtime_context().get_node_id() == node
    except AssertionError:  # another thread has shut Ray down between the two
        return False


def _listens(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=5).close()
    except (ConnectionError, TimeoutError):
        return False
    except OSError:
        return True  # a fault of this process, such as too many open files, proves nothing
    return True


def _end(process: str) -> None:
    """End the process at once: without those processes, shutting Ray down would wait for a minute."""
    progress.say(f"error: Ray has died: {process}; the same command goes on where it was", sys.stderr)
    scratch.remove()
    os._exit(1)
