"""cluster/spot_watcher.py as a node runs it, against a stand-in for the metadata service of an EC2 instance."""

import datetime
import fcntl
import http.server
import json
import subprocess
import sys
import threading
import time

import pytest
from cluster_files import ROOT

from cluster import spot_watcher


class Imds(http.server.BaseHTTPRequestHandler):
    """IMDSv2: no answer without a token; a token is good for `uses` requests."""

    def do_PUT(self):
        s = self.server
        if self.path != "/latest/api/token" or not self.headers.get("X-aws-ec2-metadata-token-ttl-seconds"):
            return self.reply(400, "")
        s.tokens.append(f"token-{len(s.tokens)}")
        s.left = s.uses
        self.reply(200, s.tokens[-1])

    def do_GET(self):
        s = self.server
        if not s.tokens or self.headers.get("X-aws-ec2-metadata-token") != s.tokens[-1] or s.left == 0:
            return self.reply(401, "")
        s.left -= 1
        s.seen.append(self.path)
        if self.path == "/latest/meta-data/instance-life-cycle":
            return self.reply(200, s.life_cycle)
        assert self.path == "/latest/meta-data/spot/instance-action"
        answer = s.answers.pop(0) if len(s.answers) > 1 else s.answers[0]
        self.reply(*answer)

    def reply(self, code: int, text: str):
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format, *args):
        pass


@pytest.fixture
def imds():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Imds)
    server.tokens, server.seen, server.left, server.uses = [], [], 0, 1000
    server.life_cycle, server.answers = "spot", [(404, "")]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def run_watcher(imds, tmp_path, ray: str, timeout: float = 20) -> tuple[subprocess.CompletedProcess[str], list]:
    """The script as a node runs it, with a `ray` that notes its arguments and then does what `ray` says."""
    calls = tmp_path / "calls"
    program = tmp_path / "ray"
    note = 'printf "%s\\n" "$@" "RAY_ADDRESS=$RAY_ADDRESS" "MODE=$RAY_AUTH_MODE" --'
    program.write_text(f"#!/bin/sh\n{note} >> {calls}\n{ray}\n")
    program.chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "http_proxy": "http://127.0.0.1:9",  # a proxy must not be asked
           "AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://127.0.0.1:{imds.server_address[1]}"}
    done = subprocess.run([sys.executable, ROOT / "cluster" / "spot_watcher.py", "--every", "0.02", "--address",
                           "10.0.0.1:6379", "--lock", tmp_path / "lock"], env=env, capture_output=True, text=True,
                          timeout=timeout)
    text = calls.read_text() if calls.exists() else ""
    return done, [c.strip("\n").splitlines() for c in text.split("--\n") if c.strip()]


def notice(seconds: float) -> str:
    end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
    return json.dumps({"action": "terminate", "time": end.strftime("%Y-%m-%dT%H:%M:%SZ")})


def test_watcher_drains_its_node_once_the_notice_comes(imds, tmp_path):
    imds.answers = [(404, ""), (404, ""), (500, ""), (404, ""), (200, notice(115))]
    done, calls = run_watcher(imds, tmp_path, "exit 0")
    assert done.returncode == 0, done.stderr
    assert len(imds.tokens) == 1 and len(imds.seen) == 6
    (arguments,) = calls
    assert arguments[:3] == ["drain-node", "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    given = dict(zip(arguments[1::2], arguments[2::2], strict=False))
    assert 100 <= int(given["--deadline-remaining-seconds"]) <= 115
    assert given["--address"] == "10.0.0.1:6379" and "terminate" in given["--reason-message"]
    assert {"RAY_ADDRESS=10.0.0.1:6379", "MODE=token"} <= set(arguments)


def test_watcher_takes_a_new_token_when_the_old_one_is_over(imds, tmp_path):
    imds.uses, imds.answers = 2, [(404, "")] * 5 + [(200, notice(60))]
    done, calls = run_watcher(imds, tmp_path, "exit 0")
    assert done.returncode == 0 and len(calls) == 1 and len(imds.tokens) == 4


def test_watcher_tries_again_when_ray_does_not_answer(imds, tmp_path):
    imds.answers = [(200, notice(60))]
    done, calls = run_watcher(imds, tmp_path, f"[ $(grep -c ^drain-node {tmp_path}/calls) -ge 3 ]")
    assert done.returncode == 0 and len(calls) == 3


def test_watcher_ends_on_an_on_demand_instance(imds, tmp_path):
    imds.life_cycle = "on-demand"
    done, calls = run_watcher(imds, tmp_path, "exit 0")
    assert done.returncode == 0 and calls == [] and "nothing to watch" in done.stdout
    assert imds.seen == ["/latest/meta-data/instance-life-cycle"]


def test_a_second_watcher_leaves(imds, tmp_path):
    with open(tmp_path / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done, _ = run_watcher(imds, tmp_path, "exit 0")
    assert done.returncode == 0 and "runs already" in done.stdout and imds.seen == []


def test_watcher_lives_through_a_service_that_is_away(imds, tmp_path):
    port = imds.server_address[1]
    imds.shutdown()
    imds.server_close()
    later = []

    def come_back():
        time.sleep(0.5)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Imds)
        server.tokens, server.seen, server.left, server.uses = [], [], 0, 1000
        server.life_cycle, server.answers = "spot", [(200, notice(30))]
        later.append(server)
        server.serve_forever()

    thread = threading.Thread(target=come_back, daemon=True)
    thread.start()
    done, calls = run_watcher(imds, tmp_path, "exit 0")
    later[0].shutdown()
    later[0].server_close()
    assert done.returncode == 0 and len(calls) == 1 and "no metadata" in done.stdout


@pytest.mark.parametrize(("text", "left"), [
    ('{"action": "terminate", "time": "2026-01-01T00:01:30Z"}', 90),
    ('{"action": "terminate", "time": "2025-12-31T23:00:00Z"}', 0),
    ('{"action": "terminate"}', 120), ("nonsense", 120), ("[]", 120), ('{"time": 5}', 120),
    ('{"action": "stop", "time": "tomorrow"}', 120), ('{"time": "2026-01-01T00:00:10"}', 120)])
def test_seconds_left(text, left):
    assert spot_watcher.seconds_left(text, datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)) == left


def test_the_command_line_that_the_watcher_uses_exists():
    """`ray drain-node` is hidden and not part of Ray's stable interface: look at each upgrade."""
    from ray.scripts.scripts import cli

    command = cli.commands["drain-node"]
    names = {o for p in command.params for o in p.opts}
    assert {"--address", "--node-id", "--reason", "--reason-message", "--deadline-remaining-seconds"} <= names
    reason = next(p for p in command.params if "--reason" in p.opts)
    assert "DRAIN_NODE_REASON_PREEMPTION" in reason.type.choices
