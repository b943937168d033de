"""Wait for the notice that AWS takes this spot instance back, then drain its Ray node.

AWS gives two minutes. A drained node gets no new work, and Ray Train goes on elsewhere from the newest checkpoint.
Runs on every worker, beside Ray, with nothing but Python's own library; ends by itself on an on-demand instance.
"""

from __future__ import annotations

import argparse
import datetime
import fcntl
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request

# AWS's own variable for another address of the metadata service; tests use it too
METADATA = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.169.254").rstrip("/")
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy has no business here


class Metadata:
    """The instance's metadata, by IMDSv2 only."""

    def __init__(self, base: str):
        self.base, self.token = base, ""

    def get(self, path: str) -> str | None:
        """Text of an item; None where there is none. Raises: OSError if the service does not answer."""
        for retry in (True, False):
            if not self.token:
                self.token = self._ask("PUT", "api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "21600"})
            try:
                return self._ask("GET", f"meta-data/{path}", {"X-aws-ec2-metadata-token": self.token})
            except urllib.error.HTTPError as error:
                if error.code == 404:
                    return None
                if error.code != 401 or not retry:
                    raise
                self.token = ""  # it is six hours old

    def _ask(self, method: str, path: str, headers: dict) -> str:
        request = urllib.request.Request(f"{self.base}/latest/{path}", method=method, headers=headers)
        with DIRECT.open(request, timeout=2) as answer:
            return answer.read().decode()


def seconds_left(notice: str, now: datetime.datetime) -> int:
    """Whole seconds until the notice {"action": ..., "time": ...} is carried out; AWS's 120 if it does not say when."""
    try:
        end = datetime.datetime.fromisoformat(json.loads(notice)["time"].replace("Z", "+00:00"))
        return max(0, int((end - now).total_seconds()))
    except (ValueError, KeyError, TypeError, AttributeError):
        return 120


def drain(left: int, notice: str, address: str, node_id: str) -> int:
    """Exit code of `ray drain-node` for this node."""
    command = ["ray", "drain-node", "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message",
               f"spot interruption: {notice[:200]}", "--deadline-remaining-seconds", str(left)]
    command += (["--address", address] if address else []) + (["--node-id", node_id] if node_id else [])
    # without --node-id Ray asks the node it finds itself, by RAY_ADDRESS
    env = os.environ | ({"RAY_ADDRESS": address} if address else {}) | {"RAY_AUTH_MODE": "token"}
    return subprocess.run(command, env=env, timeout=60).returncode


def watch(metadata: Metadata, every_s: float, address: str, node_id: str) -> int:
    """Until this node is drained, or at once if it is on-demand."""
    life_cycle = None
    while True:
        try:
            if life_cycle is None:
                life_cycle = metadata.get("instance-life-cycle") or ""
                if life_cycle != "spot":
                    print(f"spot watcher: life cycle {life_cycle!r}, nothing to watch", flush=True)
                    return 0
            notice = metadata.get("spot/instance-action")
        except OSError as error:  # the service is restarted now and then
            print(f"spot watcher: no metadata: {error}", flush=True)
            notice = None
        if notice:
            left = seconds_left(notice, datetime.datetime.now(datetime.UTC))
            print(f"spot watcher: {notice} in {left} s, draining", flush=True)
            try:
                if drain(left, notice, address, node_id) == 0:
                    return 0
            except (OSError, subprocess.SubprocessError) as error:
                print(f"spot watcher: {error}", flush=True)
        time.sleep(every_s)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--address", default="", help="GCS of the cluster, HEAD_IP:6379; empty: that of the Ray here")
    parser.add_argument("--node-id", default="", help="node to drain (hex); empty: the one here")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two looks (AWS advises 5)")
    parser.add_argument("--lock", default="/tmp/fer_ray_spot_watcher.lock", help="keeps a second watcher away")
    options = parser.parse_args()
    lock = open(options.lock, "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("spot watcher: runs already", flush=True)
        return 0
    return watch(Metadata(METADATA), options.every, options.address, options.node_id)


if __name__ == "__main__":
    sys.exit(main())
