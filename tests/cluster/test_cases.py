"""Data sets as people really have them, through the whole command: `tests/cases.py` says what must come of each."""

import re

import cases
import pandas as pd
import pytest
from cluster.conftest import run_job


@pytest.mark.parametrize("group", cases.GROUPS)
def test_of_each_case_comes_what_was_put_in(tmp_path, group):
    for name, case in cases.usable(group).items():
        case.build(tmp_path / "raw" / group / name)
    done = run_job("prepare", *cases.options(group, str(tmp_path / "raw")), "--storage", str(tmp_path), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "prepared" / group
    cases.check(group, pd.read_parquet(folder / "index.parquet"), pd.read_parquet(folder / "rejected.parquet"))
    files = [file for file in (tmp_path / "raw" / group).rglob("*") if file.is_file()]
    line = re.search(r"prepare: ([\d,]+) files = (.*)", done.stdout)
    assert line and "belong to no data set" not in line[2]
    assert int(line[1]) >= len(files) - sum("blobs" in file.parts for file in files) - 20  # what systems left


@pytest.mark.parametrize("name", [name for name, case in cases.CASES.items() if case.error])
def test_what_cannot_be_told_ends_the_job_in_one_line(tmp_path, name):
    cases.CASES[name].build(tmp_path / "raw")
    done = run_job("prepare", "--data.root", str(tmp_path / "raw"), "--storage", str(tmp_path / "out"), cwd=tmp_path)
    assert done.returncode == 1 and re.fullmatch(rf"error: .*{cases.CASES[name].error}.*\n", done.stderr)
    assert not (tmp_path / "out/prepared").exists()
