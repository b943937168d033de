"""The main job with its storage on a real S3 server that breaks a tenth of the requests."""

import json
import subprocess
import sys

import pytest
import s3
from cluster.conftest import REPO, command, environment

from fer_ray.datasets.sample import write_sample


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Folder, options, environment, output and the faults that were injected."""
    root = tmp_path_factory.mktemp("s3")
    write_sample(root / "data", subjects=4, seed=3)
    options = ["--data.root", str(root / "data"), "--storage", "s3://bucket/work", "--name", "tiny",
               "--data.sources", '[{"kind": "ckplus", "root": "CK+"}, {"kind": "jaffe", "root": "jaffe"}]',
               "--train.backbone", "resnet18", "--train.weights", "none", "--train.batch_size", "8"]
    with s3.server() as port, s3.faulty(port, share=0.1) as (proxy, told):
        reached = environment() | s3.environment(proxy)
        done = subprocess.run(command("pipeline", *options, "--train.epochs", "1"), cwd=root, env=reached,
                              capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stdout + done.stderr
        yield root, options, reached, done.stdout, told


def test_the_job_ends_with_its_result_although_requests_break(ran):
    _, _, _, stdout, told = ran
    assert stdout.strip().splitlines()[-1] == "result: s3://bucket/work/runs/tiny/result.json"
    assert sum(told.values()) - told["none"] >= 5, told


def test_a_pulled_checkpoint_scores_the_same(ran, tmp_path):
    _, options, reached, _, _ = ran
    read = [sys.executable, "-c", "from fer_ray import storage; print(storage.read_bytes('s3://bucket/work/runs/tiny/"
            "result.json').decode())"]
    before = json.loads(subprocess.run(read, cwd=REPO, env=reached, capture_output=True, check=True).stdout)
    pull = [sys.executable, str(REPO / "scripts/pull_checkpoint.py"), "--storage", "s3://bucket/work", "--to", "mine"]
    pulled = subprocess.run(pull, cwd=tmp_path, env=reached, capture_output=True, text=True)
    assert pulled.returncode == 0, pulled.stderr
    scored = subprocess.run(command("evaluate", *options, "--train.epochs", "1", "--evaluate.checkpoint",
                                    str(tmp_path / "mine")), cwd=tmp_path, env=reached, capture_output=True, text=True)
    assert scored.returncode == 0, scored.stdout + scored.stderr
    after = json.loads(subprocess.run(read, cwd=REPO, env=reached, capture_output=True, check=True).stdout)
    assert after["metrics"] == before["metrics"] and after["checkpoint"] == str(tmp_path / "mine")
    secret = s3.KEYS["AWS_SECRET_ACCESS_KEY"]
    assert not any(secret in text for text in (json.dumps(after), scored.stdout, scored.stderr, pulled.stdout))
