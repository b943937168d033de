"""Dockerfile and .dockerignore, and the package that `ray job submit` makes of a working tree."""

import re
import subprocess
import zipfile

import pytest
from cluster_files import ROOT, VERSION


def image_file_problems(dockerfile: str, ignore: str) -> list[str]:
    steps = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", dockerfile, flags=re.M)).splitlines()
    lines = []
    bases = [s.split()[1] for s in steps if s.startswith("FROM ")]
    if bases != [f"rayproject/ray:{VERSION}-py311-gpu"]:
        lines.append(f"FROM {bases} is not Ray {VERSION}, that of constraints.txt")
    if any("pip install" in s and "-c constraints.txt" not in s for s in steps) or not any(
            "pip install" in s for s in steps):
        lines.append("installs without constraints.txt")
    if not any(f"ray.__version__ == '{VERSION}'" in s for s in steps):
        lines.append("does not check Ray's version")
    users = [s.split()[1] for s in steps if s.startswith("USER ")]
    if not users or users[-1] in ("0", "root"):
        lines.append("runs as root")
    if not any(s.startswith("ENV ") and "RAY_AUTH_MODE=token" in s for s in steps):
        lines.append("no token mode")
    allowed = {x[1:] for x in ignore.split() if x.startswith("!")}
    if "*" not in ignore.split() or allowed - {"pyproject.toml", "constraints.txt", "fer_ray", "jobs", "cluster"}:
        lines.append(".dockerignore: lets more in than is copied")
    for s in steps:
        if s.startswith(("COPY ", "ADD ")):
            sources = [w.removeprefix("./") for w in s.split()[1:-1] if not w.startswith("--")]
            lines += [f"copies {w}, which .dockerignore keeps out" for w in sources if w not in allowed]
    return lines


IMAGE_MUTATIONS = {
    "newer Ray": (("2.60.0-py311", "2.61.0-py311"), "is not Ray"),
    "latest": (("ray:2.60.0-py311-gpu", "ray:latest-gpu"), "is not Ray"),
    "no constraints": ((" -c constraints.txt", ""), "without constraints"),
    "version unchecked": (("assert ray.__version__ == '2.60.0'", "assert ray.__version__"), "does not check"),
    "root": (("USER 1000", "USER root"), "runs as root"),
    "no token": (("RAY_AUTH_MODE=token ", ""), "no token mode"),
    "copies all": (("COPY --chown=ray:users fer_ray ./fer_ray", "COPY . ."), r"copies \., which"),
    "all goes in": (("\n*\n", "\n"), "lets more in"),
    "git goes in": (("!jobs", "!jobs\n!.git"), "lets more in"),
}


def test_image_is_right():
    assert image_file_problems((ROOT / "Dockerfile").read_text(), (ROOT / ".dockerignore").read_text()) == []


@pytest.mark.parametrize("name", IMAGE_MUTATIONS)
def test_image_broken(name):
    (old, new), words = IMAGE_MUTATIONS[name]
    texts = [(ROOT / f).read_text() for f in ("Dockerfile", ".dockerignore")]
    assert any(old in t for t in texts)
    found = image_file_problems(*(t.replace(old, new) for t in texts))
    assert any(re.search(words, line) for line in found), found


def test_what_is_submitted_is_every_source_file_and_nothing_else(tmp_path):
    from ray._private.runtime_env.packaging import create_package  # what `ray job submit` calls

    def git(*words: str) -> list[str]:
        return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\n")

    # tracked, or new and not ignored: git's own reading of .gitignore
    sources = {f for f in git("ls-files", "--cached", "--others", "--exclude-standard") if f and (ROOT / f).is_file()}
    left = ["fer_ray_output/runs/x/metrics.jsonl", "sample_data/a.png", "cluster/filled/cluster.yaml", ".venv/bin/ray",
            "fer_ray/__pycache__/a.pyc", ".git/config", ".pytest_cache/a", "fer_ray.egg-info/PKG-INFO"]
    tree = tmp_path / "tree"
    for name in [*sources, *left]:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes((ROOT / name).read_bytes() if name in sources else b"stays")
    create_package(str(tree), tmp_path / "package.zip", include_gitignore=True)
    with zipfile.ZipFile(tmp_path / "package.zip") as package:
        assert {name for name in package.namelist() if not name.endswith("/")} == sources
    assert (tmp_path / "package.zip").stat().st_size < 10 * 2**20  # the limit is 100 MiB
