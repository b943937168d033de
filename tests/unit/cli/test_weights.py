"""What a training lacks ends the job before anything is drawn, cropped or started."""

import subprocess
import sys
import time
from pathlib import Path

REPO = Path(__file__).parents[3]


def test_damaged_weights_end_a_job_within_seconds(tmp_path):
    weights, faces = tmp_path / "weights.pth", tmp_path / "faces"
    weights.write_bytes(b"<html>not found</html>")
    begun = time.monotonic()
    done = subprocess.run([sys.executable, REPO / "jobs/pipeline.py", "--data.kind", "sample", "--data.root", faces,
                           "--storage", tmp_path / "out", "--train.weights", weights], capture_output=True, text=True)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"error: train.weights {weights}: ")
    assert not faces.exists() and not (tmp_path / "out").exists()
    assert time.monotonic() - begun < 20  # drawing the faces would take longer, and Ray would start after it
