"""`--help` explains every option that a verb uses, at once; docs/options.md explains them all."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from fer_ray import config, values
from fer_ray.cli import main, reference

REPO = Path(__file__).parents[3]
KEYS = {key for key, kind in values.known_options(config.Config).items() if not values.is_section(kind)}


def run(*words: str, **more):
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=REPO, **more)


def test_every_option_has_its_text():
    explained = {option.key: option for option in reference.all_options()}
    assert explained.keys() == KEYS
    for option in explained.values():
        assert len(option.text) > 10 and option.legal and option.default, option.key


def test_every_option_is_used_by_a_verb():
    assert reference.USES.keys() == main.VERBS.keys()
    assert {option.key for verb in main.VERBS for option in reference.used_by(verb)} == KEYS


@pytest.mark.parametrize("verb", main.VERBS)
def test_help_of_a_verb_shows_what_it_uses_in_groups_with_the_common_ones_first(verb):
    page = reference.help_of(verb, main.VERBS[verb][1])
    shown = [line.split()[0].removeprefix("--") for line in page.splitlines() if line.startswith("  --")]
    assert shown[:3] == ["config", "name", "storage"]
    assert sorted(shown[1:]) == sorted(option.key for option in reference.used_by(verb))
    flat = " ".join(page.split())
    for option in reference.used_by(verb):
        assert f"--{option.key} VALUE {option.text} [{option.legal}; default: {option.default}]" in flat
    assert "docs/options.md" in page and max(map(len, page.splitlines())) <= reference.WIDTH


def test_help_of_training_has_nothing_of_preparing():
    page = reference.help_of("train", "")
    assert "--train.lr" in page and "--faces.detector" not in page and "--tune.searcher" not in page


def test_the_page_of_all_options_is_current():
    assert (REPO / "docs/options.md").read_text() == reference.markdown(), \
        "make it again: python -m fer_ray.cli.reference > docs/options.md"


def test_help_answers_at_once_and_loads_nothing_heavy():
    code = ("import sys; from fer_ray.cli import main; sys.argv = ['fer_ray', *sys.argv[1:]]; main.main();"
            "print(sorted({'ray', 'torch', 'pandas', 'cv2', 'pydantic'} & sys.modules.keys()))")
    for words in (["--help"], ["train", "--help"], ["pipeline", "-h"]):
        begin = time.monotonic()
        done = run("-c", code, *words)
        seconds = time.monotonic() - begin
        assert done.returncode == 0 and done.stdout.endswith("[]\n"), done.stderr
        assert seconds < 1.5 or sum(_load()) > 2, seconds


def _load() -> list[float]:
    """How busy the machine is: on a busy one a limit of time says nothing."""
    return [float(word) for word in Path("/proc/loadavg").read_text().split()[:1]]


def test_the_list_of_verbs_and_an_unknown_one(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fer_ray"])
    main.main()
    listed = capsys.readouterr().out
    assert all(f"  {verb} " in listed and description in listed for verb, (_, description) in main.VERBS.items())
    monkeypatch.setattr(sys, "argv", ["fer_ray", "trian"])
    with pytest.raises(SystemExit, match="error: unknown verb 'trian'"):
        main.main()


@pytest.mark.parametrize(("verb", "option"), [("pipeline", "data.root"), ("crossdata", "data.sources"),
                                              ("predict", "predict.images")])
def test_a_job_without_options_says_what_it_needs(verb, option, tmp_path):
    done = run(f"jobs/{verb}.py", env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPO), "HOME": str(tmp_path)})
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {option}: ")


def test_each_job_runs_its_verb():
    assert {path.stem for path in (REPO / "jobs").glob("*.py")} == main.VERBS.keys()
    for verb, (_, description) in main.VERBS.items():
        words, *code = (REPO / f"jobs/{verb}.py").read_text().split("\n\n")
        assert words == f'"""{description}"""'
        assert code == ["from fer_ray.cli.main import run", f'if __name__ == "__main__":\n    run("{verb}")\n']


# --- options of the environment --------------------------------------------------------------------------


def test_options_of_the_environment_win_and_a_line_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FER_RAY_OPTIONS", "--train.epochs 1 --tune.num_trials=2 --card.limits 'not for people'")
    read = main.read_options(["--train.epochs", "9", "--train.lr", "0.5"])
    assert (read.train.epochs, read.train.lr, read.tune.num_trials) == (1, 0.5, 2)
    assert (read.card.limits, read.storage) == ("not for people", f"{tmp_path}/fer_ray_output")
    told = capsys.readouterr()
    assert told.err == "FER_RAY_OPTIONS adds: --train.epochs 1 --tune.num_trials=2 --card.limits 'not for people'\n"
    assert not told.out


def test_credentials_in_options_of_the_environment_are_not_repeated(monkeypatch, capsys):
    monkeypatch.setenv("FER_RAY_OPTIONS", "--name x --storage=s3://KEY:TOPSECRET@bucket/x")
    with pytest.raises(config.ConfigError, match="storage: carries credentials"):
        main.read_options([])
    told = capsys.readouterr().err
    assert "--name x" in told and "TOPSECRET" not in told


def test_wrong_options_of_the_environment_are_one_line(monkeypatch):
    for wrong in ("--name 'x", "--train.epoch 1"):
        monkeypatch.setenv("FER_RAY_OPTIONS", wrong)
        with pytest.raises(SystemExit, match="error: (FER_RAY_OPTIONS: No closing quotation|unknown option)"):
            main.run("train", [])


def test_a_submitted_job_is_refused_by_its_storage_as_it_was_typed(monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    for storage in ("out", "~/out"):
        with pytest.raises(config.ConfigError, match=f"storage: {storage} would lie in the submitted job's own folder"):
            main.read_options(["--storage", storage])
    assert main.read_options(["--storage", "s3://bucket/x"]).storage == "s3://bucket/x"
