"""From a submitted pipeline to a pulled model: a started head, and S3 behind a line that breaks a tenth of requests."""

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import boto3
import cases
import pandas as pd
import pyarrow.parquet as pq
import pytest
import s3
from cluster.conftest import REPO, command, environment
from preparing import in_this_process, prepared

from fer_ray import options, storage
from fer_ray.config import Config
from fer_ray.data import prepare
from fer_ray.data.manifest import EXPRESSIONS
from fer_ray.data.sources import read_manifest
from fer_ray.data_config import DataConfig, SourceConfig

STORAGE, RAW = "s3://bucket/work", "s3://bucket/raw"
RAY = Path(sys.executable).with_name("ray")


@contextlib.contextmanager
def nodes(reached: dict[str, str]):
    """`ray start --head` with token authentication, and a second node; the environment of a shell that uses them."""
    with socket.socket() as a, socket.socket() as b:
        a.bind(("127.0.0.1", 0)), b.bind(("127.0.0.1", 0))
        port, board = a.getsockname()[1], b.getsockname()[1]
    home = tempfile.mkdtemp(prefix="r")  # pytest's own folders are too long for the names of Ray's sockets
    shell = environment() | reached | {"HOME": home, "RAY_AUTH_MODE": "token", "RAY_ADDRESS": f"127.0.0.1:{port}",
                                       "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{board}",
                                       "PATH": f"{RAY.parent}:{os.environ['PATH']}"}  # an activated environment
    subprocess.run([RAY, "get-auth-token", "--generate"], env=shell, check=True, capture_output=True)
    # port 0 of the agent: another Ray on this machine may have taken its usual one, and then no job starts
    started = subprocess.Popen([RAY, "start", "--head", "--block", "--port", str(port), "--dashboard-port", str(board),
                                "--dashboard-host", "127.0.0.1", "--dashboard-agent-listen-port", "0",
                                "--num-cpus", "2", "--temp-dir", f"{home}/ray"],
                               env={k: v for k, v in shell.items() if k != "RAY_ADDRESS"}, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True)
    second = None
    try:
        wait_for_start(started)
        second = subprocess.Popen([RAY, "start", "--block", "--address", shell["RAY_ADDRESS"], "--num-cpus", "1",
                                   "--dashboard-agent-listen-port", "0"],
                                  env=shell, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        wait_for_start(second)
        wait_until(lambda: subprocess.run([RAY, "job", "list"], env=shell, capture_output=True).returncode == 0)
        yield shell
    finally:
        for process in filter(None, (second, started)):
            process.send_signal(signal.SIGINT)
            process.wait(30)
        shutil.rmtree(home, ignore_errors=True)


def wait_for_start(node: subprocess.Popen) -> None:
    said = [""]
    while "Ray runtime started" not in said[-1]:
        said.append(node.stdout.readline())
        assert said[-1], f"ray start ended: {''.join(said)}"


def wait_until(holds, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.5)


def submit(*words: str) -> list[str]:
    return ["bash", str(REPO / "scripts/submit.sh"), *words]


@pytest.fixture(scope="module")
def ran(sample_of, tmp_path_factory):
    """Folder, options, shell, output of the submitted pipeline and the faults that were injected."""
    root = tmp_path_factory.mktemp("s3")
    sample_of(root / "data", people=3)
    options = ["--data.root", RAW, "--storage", STORAGE, "--name", "tiny",
               "--data.sources", '[{"kind": "ckplus", "root": "CK+"}, {"kind": "jaffe", "root": "jaffe"}]',
               "--train.backbone", "tiny", "--train.weights", "none", "--train.batch_size", "8",
               "--train.epochs", "1"]
    with s3.server() as port, s3.faulty(port) as (proxy, injected, hold), nodes(s3.environment(proxy)) as shell:
        upload(root / "data", port)
        done = run(submit("jobs/pipeline.py", *options), root, shell)
        assert done.returncode == 0, done.stdout + done.stderr
        hold.faults = False
        yield SimpleNamespace(root=root, options=options, shell=shell, stdout=done.stdout, injected=injected, hold=hold,
                              port=port)


def upload(folder: Path, port: int, prefix: str = "raw") -> None:
    """Put raw data into the bucket, past the line that breaks requests."""
    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="eu-central-1",
                          aws_access_key_id="testing", aws_secret_access_key="testing")
    for file in (path for path in folder.rglob("*") if path.is_file()):
        client.upload_file(str(file), "bucket", f"{prefix}/{file.relative_to(folder)}")


def run(words: list[str], cwd: Path, shell: dict[str, str]) -> subprocess.CompletedProcess:
    return subprocess.run(words, cwd=cwd, env=shell, capture_output=True, text=True, timeout=400)


def read(shell: dict[str, str], uri: str) -> bytes:
    """A file of the storage, as a user's own process reads it."""
    program = f"import sys; from fer_ray import storage; sys.stdout.buffer.write(storage.read_bytes('{uri}'))"
    return subprocess.run([sys.executable, "-c", program], cwd=REPO, env=shell, capture_output=True, check=True).stdout


def test_the_submitted_job_ends_with_its_result_although_requests_break(ran):
    assert ran.stdout.strip().splitlines()[-1] == f"result: {STORAGE}/runs/tiny/result.json"
    assert sum(ran.injected.values()) - ran.injected["none"] >= 5, ran.injected


def test_both_nodes_crop_and_the_parts_are_those_of_a_local_run(ran, tmp_path, monkeypatch):
    said = re.search(r"prepare: cropped on 2 nodes: (\w{56}) (\d+), (\w{56}) (\d+)", ran.stdout)
    assert said and said[1] != said[3], ran.stdout
    monkeypatch.setattr(prepare, "_on_workers", in_this_process)
    sources = [SourceConfig("ckplus", "CK+"), SourceConfig("jaffe", "jaffe")]
    local = prepared(Config(name="tiny", storage=str(tmp_path), data=DataConfig(root=str(ran.root / "data"),
                                                                                sources=sources)))
    parts = sorted((local / "images").iterdir())
    made = sum(pq.read_metadata(part).num_rows for part in parts)
    assert int(said[2]) + int(said[4]) == made and min(int(said[2]), int(said[4])) > 0
    program = (f"import hashlib; from fer_ray import storage\nfor name in {[part.name for part in parts]}: print("
               f"hashlib.sha256(storage.read_bytes(f'{STORAGE}/prepared/tiny/images/{{name}}')).hexdigest())")
    remote = run([sys.executable, "-c", program], REPO, ran.shell).stdout.split()
    assert remote == [hashlib.sha256(part.read_bytes()).hexdigest() for part in parts]


@pytest.mark.parametrize("group", cases.GROUPS)
def test_of_each_case_in_a_bucket_comes_what_was_put_in(ran, tmp_path, monkeypatch, group):
    for name, case in cases.usable(group, links=False).items():
        case.build(tmp_path / group / name)
    upload(tmp_path, ran.port, "cases")
    monkeypatch.setattr(prepare, "_on_workers", in_this_process)  # what workers do is the same as of a folder
    with s3.in_this_process(ran.port):
        config = options.load([*cases.options(group, "s3://bucket/cases", links=False), "--storage", STORAGE])
        uri = prepare.prepare(config, read_manifest(config.data, config.split.by))
        index, rejected = (pd.read_parquet(io.BytesIO(storage.read_bytes(f"{uri}/{name}.parquet")))
                           for name in ("index", "rejected"))
    cases.check(group, index, rejected, links=False)


def test_a_job_that_fails_ends_with_its_error(ran):
    done = run(submit("jobs/prepare.py", "--data.root", "/no/such/folder", "--storage", STORAGE), ran.root, ran.shell)
    assert done.returncode == 1 and not done.stderr
    assert done.stdout.strip().splitlines()[-1].startswith("error: data.root: /no/such/folder is not a folder")


def test_results_are_not_left_in_the_submitted_copy(ran):
    done = run(submit("jobs/train.py", "--storage", "results"), ran.root, ran.shell)
    assert done.returncode == 1 and "error: storage: results would lie in" in done.stdout.splitlines()[-1]


def test_a_wrong_token_submits_nothing(ran):
    done = run(submit("jobs/train.py"), ran.root, ran.shell | {"RAY_AUTH_TOKEN": "0" * 64})
    assert done.returncode == 1 and "took no job: Authentication failed" in done.stderr


def test_a_pulled_checkpoint_scores_the_same(ran, tmp_path):
    before = json.loads(read(ran.shell, f"{STORAGE}/runs/tiny/result.json"))
    pulled = run([sys.executable, str(REPO / "scripts/pull_checkpoint.py"), "--storage", STORAGE, "--to", "mine"],
                 tmp_path, ran.shell)
    assert pulled.returncode == 0, pulled.stderr
    scored = run(command("evaluate", *ran.options, "--evaluate.checkpoint", str(tmp_path / "mine")), tmp_path,
                 ran.shell)
    assert scored.returncode == 0, scored.stdout + scored.stderr
    after = json.loads(read(ran.shell, f"{STORAGE}/runs/tiny/result.json"))
    assert after["metrics"] == before["metrics"] and after["checkpoint"] == str(tmp_path / "mine")
    secret = s3.KEYS["AWS_SECRET_ACCESS_KEY"]
    assert not any(secret in text for text in (json.dumps(after), scored.stdout, scored.stderr, pulled.stdout))


def test_ctrl_c_leaves_the_job_and_predicting_says_what_evaluating_said(ran):
    following = subprocess.Popen(submit("jobs/predict.py", "--storage", STORAGE, "--name", "tiny", "--predict.images",
                                        RAW), cwd=ran.root, env=ran.shell, stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE, text=True, start_new_session=True)
    job = re.fullmatch(r"job (\w+)\n", following.stdout.readline())[1]
    time.sleep(1)
    os.killpg(following.pid, signal.SIGINT)  # as a terminal does
    _, said = following.communicate(timeout=20)
    assert following.returncode == 130 and f"ray job logs --follow {job}" in said
    subprocess.run([RAY, "job", "logs", "--follow", job], env=ran.shell, capture_output=True, timeout=300)
    wait_until(lambda: b"SUCCEEDED" in subprocess.run([RAY, "job", "list"], env=ran.shell, capture_output=True).stdout
               .split(job.encode())[1].split(b"submission_id=")[0])
    scored, predicted = (pd.read_csv(io.BytesIO(read(ran.shell, f"{STORAGE}/{where}/tiny/predictions.csv")),
                                     index_col=0) for where in ("runs", "predictions"))
    columns = [f"p_{e}" for e in EXPRESSIONS]
    predicted = predicted[predicted["face"].fillna(0) == 0]  # the largest face, which is what is evaluated
    assert len(predicted) == len([p for p in (ran.root / "data").rglob("*") if p.suffix in (".png", ".tiff")])
    assert len(scored) > 0 and (scored[columns] - predicted.loc[scored.index, columns]).abs().max().max() < 1e-6


def test_no_reader_sees_half_a_checkpoint_when_its_writer_is_killed(ran, tmp_path):
    train = command("train", *ran.options, "--name", "killed", "--prepared", "tiny")
    pull = [sys.executable, str(REPO / "scripts/pull_checkpoint.py"), "--storage", STORAGE, "--name", "killed"]
    newest = [sys.executable, "-c",
              f"from fer_ray.model import checkpoints; print(checkpoints.find_latest('{STORAGE}/runs/killed'))"]
    ran.hold.at("PUT", r"runs/killed/checkpoint_[^/]*/model\.json")  # the weights are there, what describes them is not
    driver = subprocess.Popen(train, cwd=ran.root, env=ran.shell, start_new_session=True,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert ran.hold.reached.wait(100)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    time.sleep(2)  # Ray ends the workers of a driver that is gone
    assert run(newest, REPO, ran.shell).stdout.strip() == "None"
    refused = run(pull, tmp_path, ran.shell)
    assert refused.returncode == 1 and "best/killed.json: is missing" in refused.stderr
    ran.hold.release()
    done = run(train, ran.root, ran.shell)
    assert done.returncode == 0, done.stdout + done.stderr
    assert run(newest, REPO, ran.shell).stdout.startswith(f"{STORAGE}/runs/killed/checkpoint_")
    assert run(pull, tmp_path, ran.shell).returncode == 0


def test_a_search_ends_with_its_best(ran):
    done = run(command("tune", *ran.options, "--tune.num_trials", "1", "--tune.max_epochs", "1"), ran.root, ran.shell)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip().splitlines()[-1] == f"result: {STORAGE}/tune/tiny/tune.json"
    assert json.loads(read(ran.shell, f"{STORAGE}/best/tiny.json"))["checkpoint"].startswith("tune/tiny/")
