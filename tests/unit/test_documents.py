"""Each command of README.md and docs/ is known to the tests; those that need a cloud are checked as far as they can be.

The others are run by tests/cluster/test_commands.py.
"""

import re
import runpy
import shlex
import sys

import botocore.loaders
import botocore.model
import documented
import pytest
from botocore import xform_name

from fer_ray import options

COMMANDS = documented.commands()


def of_kind(*kinds: str) -> list:
    return [pytest.param(c.text, id=f"{c.file}: {c.text[:60]}") for c in COMMANDS
            if documented.treatment(c.text)[0] in kinds]


def test_every_command_is_known_and_here_is_the_list(capsys):
    table = [(c.file, *documented.treatment(c.text), c.text) for c in COMMANDS]
    for file, kind, why, text in table:
        if kind in ("run", "help"):
            assert documented.fill_in(text)
        print(f"{file:22} {kind:10} {text.splitlines()[0][:90]}" + (f"\n{'':34}not run: {why}" if why else ""))
    assert len([row for row in table if row[1] == "run"]) >= 10 and len(table) >= 40


def test_continued_lines_loops_and_comments_are_read_as_a_shell_reads_them():
    text = ("Say `python\njobs/train.py --name X` or:\n```bash\n# first\nbash a.sh \\\n  --b 1   # why\n"
            "for x in 1 2; do\n  echo $x\ndone\n```\n")
    assert documented.commands_of(text) == ["python jobs/train.py --name X", "bash a.sh --b 1",
                                            "for x in 1 2; do\n  echo $x\ndone"]
    assert documented.fill_in("python a.py --root FOLDER --to $OUT") == "python a.py --root faces --to $OUT"
    with pytest.raises(AssertionError, match="no treatment"):
        documented.treatment("perl -e 1")


@pytest.mark.parametrize("text", of_kind("options"))
def test_options_of_a_job_on_a_cluster_exist(text):
    words = shlex.split(documented.fill_in(text).replace("$BUCKET/$PREFIX", "bucket/prefix"))
    if "scripts/pull_checkpoint.py" in words:
        return parse_arguments(words[1:])
    job = next(i for i, word in enumerate(words) if word.startswith("jobs/"))
    assert (documented.REPO / words[job]).is_file()
    options.load(words[job + 1 :])


@pytest.mark.parametrize("text", of_kind("arguments"))
def test_arguments_of_a_measurement_exist(text):
    parse_arguments(shlex.split(re.sub(r"\bN\b", "96", documented.fill_in(text)))[1:])


def parse_arguments(words: list[str]) -> None:
    """Start a script and end it as soon as it has parsed its arguments."""
    class Parsed(Exception):
        pass

    def parse_only(self, *args, **kwargs):
        parse(self, *args, **kwargs)
        raise Parsed

    with pytest.MonkeyPatch.context() as patch:
        from argparse import ArgumentParser

        parse = ArgumentParser.parse_known_args  # which `parse_args` calls
        patch.setattr(ArgumentParser, "parse_known_args", parse_only)
        patch.setattr(sys, "argv", words)
        patch.setattr(sys, "path", [*sys.path])
        with pytest.raises(Parsed):
            runpy.run_path(str(documented.REPO / words[0]), run_name="__main__")


@pytest.mark.parametrize("text", of_kind("ray"))
def test_commands_of_ray_exist(text):
    from ray.scripts.scripts import cli

    words = shlex.split(re.split(r" [>&|]", text.partition("ray ")[2])[0])
    command, given = cli.commands[words[0]], words[1:]
    if hasattr(command, "commands"):
        command, given = command.commands[given[0]], given[1:]
    if given:  # a command that the text only names has no arguments
        command.make_context(words[0], given)


@pytest.mark.parametrize("text", of_kind("cloud", "skip"))
def test_commands_of_aws_exist(text):
    for service, operation, rest in re.findall(r"\baws (\S+) (\S+)((?: (?!\|)[^|;\n]+)?)", text):
        if service in ("s3", "ecr") and operation in ("rb", "get-login-password"):
            continue  # of the command line itself, not of AWS's interface
        model = botocore.loaders.Loader().load_service_model(service.replace("s3api", "s3"), "service-2")
        names = {xform_name(name, "-"): name for name in model["operations"]}
        assert operation in names, f"aws {service} {operation}"
        shape = botocore.model.ServiceModel(model, service).operation_model(names[operation]).input_shape
        known = {xform_name(member, "-") for member in shape.members} | {"query", "output"}
        assert set(re.findall(r"(?<= )--([a-z-]+)", rest)) <= known, f"aws {service} {operation}"
