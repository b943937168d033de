"""Imports never point downward in the design's list of modules, and pure modules do without Ray."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fer_ray

PACKAGE = Path(fer_ray.__file__).parent

# The table "module, in import order" of the design; True: the module may import Ray.
ORDER = {
    "errors": False,
    "config": False,
    "options": False,
    "schedule": False,
    "storage": False,
    "manifest": False,
    "pixels": False,
    "datasets": False,
    "faces": False,
    "duplicates": False,
    "splits": False,
    "augment": False,
    "prepare": True,
    "room": True,
    "batches": True,
    "backbones": False,
    "checkpoints": False,
    "metrics": False,
    "predictor": True,  # through batches
    "tracking": True,  # its callback
    "loop": True,  # through batches
    "workers": True,
    "training": True,
    "space": False,
    "tuning": True,
    "inference": True,
    "explanation": True,  # through prepare
    "evaluation": True,
    "protocols": True,
    "labels": False,
    "figures": False,
    "report": False,
    "comparison": False,
    "overview": True,  # through prepare
    "published": False,
}
RANK = {name: rank for rank, name in enumerate(ORDER)}
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    """The module of the table that a file belongs to; "" for the package itself."""
    name = path.parts[0].removesuffix(".py")
    return "" if name == "__init__" else name


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
    here = module_of(path)
    used = {name.split(".")[1] for name in imported(path) if name.startswith("fer_ray.")} - {"__version__"}
    if here == "":
        assert not used, "the package itself imports nothing"
        return
    assert here in ORDER, f"fer_ray/{path} is not in the design's list of modules"
    downward = {name for name in used if name != here and RANK[name] > RANK[here]}
    assert not downward, f"{here} imports {sorted(downward)}, which stand below it"


def test_a_job_waits_for_others_that_have_torch():
    jobs = PACKAGE.parent / "jobs"
    code = f"import sys; sys.path.insert(0, {str(jobs)!r}); import stages, studies; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_pure_modules_import_without_ray():
    pure = [name for name, uses_ray in ORDER.items() if not uses_ray]
    present = [n for n in pure if (PACKAGE / f"{n}.py").exists() or (PACKAGE / n).is_dir()]
    code = f"import sys, {', '.join(f'fer_ray.{name}' for name in present)}; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False"
