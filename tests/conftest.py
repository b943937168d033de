"""Settings for all tests."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from hypothesis import settings

# Before anything imports Ray, which reads them then: no test reports home, and each Ray asks for a token.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "token")

# Ray ends idle workers beyond the number of CPUs after a second, and the next task would import PyTorch anew.
os.environ.setdefault("RAY_num_workers_soft_limit", "12")

# Before anything imports PyTorch: the networks of the tests are tiny, and threads that wait for each other take a third
# more of the processors than one thread does.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that runs the tests in the background has them ignore Ctrl-C, and so would the jobs that they interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A shared machine makes single examples slow by chance; failures must come from the code alone.
settings.register_profile("fer_ray", deadline=None, derandomize=True, max_examples=15)
settings.load_profile("fer_ray")

# The commands of these files start Rays of their own.
OWN_RAY = ("test_connection", "test_ending", "test_s3")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks for groups
def pytest_collection_modifyitems(items):
    """Mark the tests of tests/cluster, and put them first, those that share one Ray before all others.

    A start of Ray takes as long as a test. Where pytest-xdist runs several processes, one of them has the tests that
    share a Ray and another those that start their own, since these would end and start the shared one again and again.
    The other files go where a process is free, each as a whole, since what a fixture makes for a file takes seconds.
    """
    def rank(item) -> int:
        groups = [mark.args[0] for mark in item.iter_markers("xdist_group")]
        return {"shared": 0, "own": 1}.get(groups[0], 2)

    for item in items:
        if item.path.parent == Path(__file__).parent / "cluster":
            item.add_marker("cluster")
            own = item.path.stem in OWN_RAY or item.get_closest_marker("nodes")
            item.add_marker(pytest.mark.xdist_group("own" if own else "shared"))
        else:
            item.add_marker(pytest.mark.xdist_group(str(item.path.relative_to(Path(__file__).parent))))
    items.sort(key=rank)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session):
    """See that the tests of one process do start one Ray after the other, and never two at once."""
    if not getattr(session.config.option, "loadgroup", False):  # as pytest-xdist tells its workers, and only them
        return
    if any(item.get_closest_marker("cluster") and not item.nodeid.endswith(("@shared", "@own"))
           for item in session.items):
        raise pytest.UsageError("pytest-xdist does not heed its groups: pytest 9.2 with pytest-xdist 3.8 loses them; "
                                "install the versions of constraints-dev.txt")


@pytest.fixture(scope="session", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request) -> str:
    """Where networks compute: a test that uses it runs on the CPU and, marked gpu, on a GPU."""
    import torch

    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    return request.param


@pytest.fixture(scope="session")
def sample_of(tmp_path_factory):
    """`sample_of(folder, people)` writes what `write_sample` of so many people (at most 6) with seed 0 would.

    The faces are drawn once for all tests, which takes several seconds, and copied from there.
    """
    from fer_ray.data.sample import write_sample

    whole = tmp_path_factory.mktemp("sample")
    write_sample(whole, subjects=6, seed=0)
    names = sorted(person.name for person in (whole / "CK+/cohn-kanade-images").glob("S*"))

    def write(folder: Path, people: int) -> Path:
        shutil.copytree(whole, folder, ignore=shutil.ignore_patterns(*names[people:]), dirs_exist_ok=True)
        made = json.loads((whole / "sample.json").read_text())
        (folder / "sample.json").write_text(json.dumps(made | {"subjects": people}))
        return folder

    return write
