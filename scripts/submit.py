"""Run a script of this repository on a Ray cluster and follow it to its end.

    scripts/submit.sh jobs/train.py --config jobs/configs/paper.yaml --storage s3://bucket/prefix

RAY_API_SERVER_ADDRESS names the cluster's job server (default http://127.0.0.1:8265: a head on this machine, or a
tunnel to one). Exit code 0 if the job succeeded, else 1. Ctrl-C leaves the job running. What .gitignore names stays
here.
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

POLL_S = 2.0
START_S = 60.0


def main() -> None:
    """Submit, print what the job prints, end with its exit code."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(__doc__.strip(), file=sys.stderr)
        sys.exit(0 if len(sys.argv) > 1 else 2)
    os.chdir(Path(__file__).resolve().parent.parent)
    if not Path(sys.argv[1]).is_file():
        sys.exit(f"error: {sys.argv[1]} is no file of {Path.cwd()}")
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    server = os.environ.setdefault("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265")
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray").setLevel(logging.ERROR)
    for name in logging.root.manager.loggerDict:
        if name.startswith("ray."):
            logging.getLogger(name).setLevel(logging.ERROR)
    job = f"fer_ray_{datetime.now(UTC):%Y%m%d_%H%M%S}_{os.getpid()}"
    try:
        client = JobSubmissionClient(server)
        submit(client, job, shlex.join(["python", *sys.argv[1:]]))
    except (AuthenticationError, ConnectionError, RuntimeError) as error:
        sys.exit(f"error: {server} took no job: {str(error).strip()}")
    print(f"job {job}", flush=True)
    try:
        sys.exit(0 if follow(client, job) else 1)
    except KeyboardInterrupt:
        print(f"\nthe job goes on.  Its output: RAY_AUTH_MODE=token ray job logs --follow {job}"
              f"\n                  To end it:  RAY_AUTH_MODE=token ray job stop {job}", file=sys.stderr)
        sys.exit(130)


def submit(client, job: str, command: str) -> None:
    """Upload this folder and start the job. Raises: RuntimeError if the server refuses it."""
    end = time.monotonic() + START_S
    while True:
        try:
            client.submit_job(entrypoint=command, submission_id=job, runtime_env={"working_dir": "."})
            return
        except RuntimeError as error:  # a head that has just started
            if "No available agent" not in str(error) or time.monotonic() > end:
                raise
        time.sleep(POLL_S)


def follow(client, job: str) -> bool:
    """Print the job's output as it comes, until it has ended. Returns: whether it succeeded.

    Asks again and again instead of Ray's stream, which ends without a word when the line to the server breaks.
    """
    shown, reached = 0, True
    while True:
        try:
            status = client.get_job_status(job)  # before the output: what was printed until the end is then in it
            output = client.get_job_logs(job)
        except (OSError, RuntimeError) as error:  # the requests library's errors are OSErrors
            if reached:
                print(f"no answer ({type(error).__name__}); the job goes on, asking again", file=sys.stderr, flush=True)
            reached = False
        else:
            reached = True
            print(output[shown:], end="", flush=True)
            shown = len(output)
            if status.is_terminal():
                told = client.get_job_info(job)
                if told.driver_exit_code not in (0, 1):  # else the output ends with the job's own words
                    print(f"{told.status.lower()}: {told.message}", file=sys.stderr)
                return status == "SUCCEEDED"
        time.sleep(POLL_S)


if __name__ == "__main__":
    main()
