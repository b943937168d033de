"""Ask the cluster for nodes, wait until they are there, run a command, let them go.

A job looks at once whether the cluster can hold it, and one that scales from zero is empty until somebody asks:
`python cluster/reserve.py --gpus 4 --cpus 32 -- python jobs/train.py ...`. While the command runs, a node that is lost
is replaced. Without a command the nodes stay, and cost, until `--gpus 0 --cpus 0`.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time


def missing(resources: dict[str, float], gpus: int, cpus: int) -> str:
    """What `resources` lack of the wanted, in words; empty: nothing."""
    lacks = [f"{wanted - resources.get(name, 0):g} of {wanted} {name}s"
             for name, wanted in (("GPU", gpus), ("CPU", cpus)) if resources.get(name, 0) < wanted]
    return " and ".join(lacks)


def bundles(gpus: int, cpus: int) -> list[dict[str, float]]:
    """Pieces of nodes to ask for: each GPU with a CPU, and the rest of the CPUs."""
    return [{"GPU": 1, "CPU": 1}] * gpus + [{"CPU": 1}] * max(0, cpus - gpus)


def main() -> int:
    """Exit code of the command; 1 if the nodes did not come in time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpus", type=int, required=True, help="GPUs in all")
    parser.add_argument("--cpus", type=int, required=True, help="CPUs in all, those of GPU nodes too")
    parser.add_argument("--minutes", type=float, default=30, help="longest wait")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- COMMAND to run then")
    options = parser.parse_args()
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray
    from ray.autoscaler.sdk import request_resources

    ray.init(address=os.environ.get("RAY_ADDRESS") or "auto", logging_level="error", log_to_driver=False)
    # `ray job stop`: what stands below `finally` must still happen; after init, which has a handler of its own
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    keep = False
    try:
        request_resources(bundles=bundles(options.gpus, options.cpus))
        keep = wait(options.gpus, options.cpus, options.minutes) and not command
        return subprocess.call(command) if command else 0
    finally:
        if not keep:
            request_resources(bundles=[])


def wait(gpus: int, cpus: int, minutes: float) -> bool:
    """True when the nodes are there. Ends the program with exit code 1 if they do not come."""
    import ray

    end, told = time.monotonic() + 60 * minutes, ""
    while lack := missing(ray.cluster_resources(), gpus, cpus):
        if time.monotonic() > end:
            sys.exit(f"error: after {minutes:g} minutes the cluster still lacks {lack}; see `ray status`")
        if lack != told:
            print(f"reserve: waiting for {lack}", flush=True)
        told = lack
        time.sleep(5)
    print(f"reserve: {gpus} GPUs and {cpus} CPUs are there", flush=True)
    return True


if __name__ == "__main__":
    sys.exit(main())
