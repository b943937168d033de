"""Imports never point downward in the design's list of packages and modules, and pure modules do without Ray."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fer_ray

PACKAGE = Path(fer_ray.__file__).parent

# Top to bottom, the way of the data: a module imports only what stands above it. True: importing the module may import
# Ray; without Ray the others answer at once, and serve where there is no cluster.
ORDER = {
    "errors": False,
    "progress": False,
    "scratch": False,
    "values": False,
    "data_config": False,
    "config": False,
    "checks": False,
    "options": False,
    "s3": False,
    "storage": False,
    "data.manifest": False,
    "data.pixels": False,
    "data.walk": False,
    "data.listing": False,
    "data.ledger": False,
    "data.tables": False,
    "data.image_names": False,
    "data.layouts": False,
    "data.recognition": False,
    "data.drawn_face": False,
    "data.sample": False,
    "data.sources": False,
    "data.faces": False,
    "data.hamming": False,
    "data.duplicates": False,
    "data.splits": False,
    "data.leaks": False,
    "data.shortcuts": False,
    "data.prepared_set": False,
    "data.provenance": False,
    "data.crops": False,
    "data.prepare": False,
    "model.backbones": False,
    "model.augment": False,
    "model.checkpoints": False,
    "model.start_weights": False,
    "model.predictor": False,
    "model.registry": False,
    "model.metrics": False,
    "train.schedule": False,
    "train.averaging": False,
    "train.resources": False,
    "train.order": False,
    "train.batches": False,
    "train.stream": False,
    "train.job": False,
    "train.tracking": False,
    "train.live": False,
    "train.loop": False,
    "train.workers": False,
    "train.inputs": False,
    "train.training": False,
    "tune.space": False,
    "tune.policies": False,
    "tune.trial": False,
    "tune.outcome": False,
    "tune.search": False,
    "evaluate.results": False,
    "evaluate.calibration": False,
    "evaluate.inference": True,
    "evaluate.acquainted": False,
    "evaluate.explanation": False,
    "evaluate.evaluation": True,
    "evaluate.labels": False,
    "evaluate.protocols": True,
    "evaluate.comparison": True,
    "evaluate.paper": True,
    "report.figures": False,
    "report.data_figures": False,
    "report.score_figures": False,
    "report.search_figures": False,
    "report.video_figures": False,
    "report.pages": False,
    "report.prepared_page": False,
    "report.paper_page": False,
    "use.recognition": False,
    "use.photographs": False,
    "use.drawing": False,
    "use.onnx_model": False,
    "use.networks": False,
    "use.footage": False,
    "use.tracks": False,
    "use.video": False,
    "use.recognizer": False,
    "use.inputs": False,
    "use.batch": False,
    "use.gallery": False,
    "use.videos": False,
    "use.timeline": False,
    "use.onnx_export": False,
    "use.export_page": False,
    "use.export": True,
    "use.web": False,
    "use.service": True,
    "cli.wording": False,
    "cli.ending": False,
    "cli.reference": False,
    "cli.watchdog": False,
    "cli.worker_setup": False,
    "cli.connection": False,
    "cli.stages": True,
    "cli.serving": True,
    "cli.studies": True,
    "cli.audit": True,
    "cli.paper": True,
    "cli.main": False,
}
RANK = {name: rank for rank, name in enumerate(ORDER)}
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def module_of(name: str) -> str:
    """The entry of the table that a dotted name below `fer_ray` belongs to; "" for a package itself."""
    parts = name.split(".")
    return next((entry for n in (1, 2) if (entry := ".".join(parts[:n])) in ORDER), "")


def imported(path: Path) -> set[str]:
    """Dotted names that a file imports anywhere, those inside functions too."""
    names = set()
    for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write it in full"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_point_upward(path):
    dotted = ".".join(path.with_suffix("").parts)
    used = {name.removeprefix("fer_ray.") for name in imported(path) if name.startswith("fer_ray.")}
    if path.name == "__init__.py":
        # When it is asked for: `from fer_ray import Recognizer` is all that most users want of the package.
        lazily = {"use.recognizer.Recognizer"} if dotted == "__init__" else set()
        assert used <= lazily, "a package itself imports nothing"
        return
    here = module_of(dotted)
    assert here, f"fer_ray/{path} is not in the design's list of modules"
    downward = {name for name in used if (there := module_of(name)) and there != here and RANK[there] > RANK[here]}
    assert not downward, f"{here} imports {sorted(downward)}, which stand below it"


def test_a_job_waits_for_others_that_have_torch():
    code = "import sys; from fer_ray.cli import stages, studies; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_pure_modules_import_without_ray():
    pure = [name for name, uses_ray in ORDER.items() if not uses_ray]
    code = f"import sys, {', '.join(f'fer_ray.{name}' for name in pure)}; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False"
