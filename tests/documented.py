"""The commands that README.md and docs/*.md name, found in their text and filled in for a test."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).parents[1]
PROGRAMS = r"(?:[A-Z_]+=\S+ )*(?:python|bash|fer_ray|scripts/submit\.sh|pip|ray)"
INLINE = re.compile(rf"(?<!`)`({PROGRAMS}\s[^`]+)`(?!`)")
BLOCK = re.compile(r"^```(?:bash|sh|shell|console)\n(.*?)^```", re.M | re.S)

# How a test treats a command: the first pattern that matches counts, with the reason why it is not run.
TREATMENTS = (
    (r"bash scripts/test\.sh", "skip", "it runs this very test"),
    (r"pip install", "skip", "it would change the environment that the tests run in"),
    (r"(export|\.|cd|[A-Z_]+=\S*$|[A-Z_]+=\$\() ?", "skip", "it sets up the shell for the lines after it"),
    (r"(RAY_AUTH_MODE=token )?ray ", "ray", "a second Ray would disturb the tests; test_s3.py starts a head"),
    (r"curl -s -F ", "skip", "it asks the service; tests/cluster/test_serve.py asks in the same way"),
    (r"python jobs/serve\.py --name", "options", "it runs until it is ended; tests/cluster/test_serve.py starts it"),
    (r"(aws|docker|kubectl|helm|eksctl|for role|for who) ", "cloud", "it needs an account, Docker or Kubernetes"),
    (r"scripts/submit\.sh ", "options", "it needs a job server; test_s3.py submits to one"),
    (r".*s3://", "options", "it needs a bucket; test_s3.py has one"),
    (r"python scripts/(bench_\w+|measure_labels|measure_recipe)\.py", "arguments", "it measures for many minutes"),
    (r"python jobs/paper\.py ", "options", "it takes many minutes; tests/cluster/test_paper.py runs a smaller one"),
    (r"python jobs/audit\.py --labels", "options", "tests/cluster/test_evaluation.py runs it in the same way"),
    (r"python jobs/predict\.py .*--predict\.annotate", "options", "tests/cluster/test_predict.py runs it likewise"),
    (r"python jobs/(crossval|compare)\.py .*backbone", "options", "README.md has the same job, which is run"),
    (r"python jobs/(prepare|train)\.py .*fer5", "options", "a pipeline of README.md takes these steps, and is run"),
    (r"python jobs/train\.py --prepared", "options", "tests/cluster/test_training.py runs it in the same way"),
    (r"(python jobs/\w+\.py|fer_ray \w+)$", "help", "the text names the verb; alone it has no data"),
    (r"(RAY_ADDRESS=auto )?(python|bash|fer_ray) ", "run", ""),
)
# What stands for the placeholders: by default, and in the commands that the pattern finds. The folders are made by
# tests/cluster/test_commands.py.
VALUES = {"FOLDER": "faces", "NAME": "mine", "RUN": "again", "DIR": "fer_ray_output",
          "FILE": "jobs/configs/paper.yaml", "PYTHON": "python",
          "OPTIONS": "--train.class_weights none", "VERB": "train"}
SPECIAL_VALUES = (
    (r"facial_expressions\.yaml", {"FOLDER": "photographs", "NAME": "chosen"}),
    (r"make_sample_data", {"FOLDER": "drawn"}),
    (r"from_tune", {"NAME": "tune"}),
    (r"measure_shortcuts", {"RUN": "fer_ray_output/runs/quickstart"}),
    (r"predict\.images|measure_duplicates", {"FOLDER": "faces/jaffe"}),
)


@dataclass(frozen=True)
class Command:
    """A command and the document that it stands in."""

    text: str
    file: str


def documents() -> list[Path]:
    """README.md first, then the pages of docs/ as README.md refers to them, then the others."""
    readme = (REPO / "README.md").read_text()
    pages = sorted((REPO / "docs").glob("*.md"))
    return [REPO / "README.md",
            *sorted(pages, key=lambda page: readme.find(f"docs/{page.name}") % (len(readme) + 1))]


def commands() -> list[Command]:
    """All commands in the order of the documents, each once."""
    found = {}
    for file in documents():
        for text in commands_of(file.read_text()):
            found.setdefault(text, Command(text, str(file.relative_to(REPO))))
    return list(found.values())


def commands_of(document: str) -> list[str]:
    """The lines of its shell blocks, continued ones joined, and the inline code that starts a program."""
    found = [(block.start(), line) for block in BLOCK.finditer(document) for line in lines_of(block[1])]
    prose = BLOCK.sub(lambda block: " " * len(block[0]), document)
    found += [(code.start(), " ".join(code[1].split())) for code in INLINE.finditer(prose)]
    return [text for _, text in sorted(found, key=lambda entry: entry[0])]


def lines_of(block: str) -> list[str]:
    """Commands of a shell block, without comments. A loop or a quoted text over several lines is one command."""
    found, waiting = [], ""
    for line in block.splitlines():
        waiting += line.rstrip() + "\n"
        if line.endswith("\\") or not is_complete(waiting):
            continue
        found.append(without_comment(waiting))
        waiting = ""
    assert not waiting.strip(), f"no complete shell command: {waiting}"
    return [text for text in found if text]


def is_complete(text: str) -> bool:
    """Whether bash can parse it as it is: no open loop, no open quote."""
    return subprocess.run(["bash", "-n", "-c", text], capture_output=True).returncode == 0


def without_comment(text: str) -> str:
    """The command without comments, its continued lines joined."""
    lines = [re.sub(r"(^|\s)#.*$", "", line).rstrip() for line in text.splitlines()]
    return re.sub(r"\\\n\s*", "", "\n".join(lines).strip())


def treatment(text: str) -> tuple[str, str]:
    """What a test does with a command, and why it does not run it."""
    found = next(((kind, why) for pattern, kind, why in TREATMENTS if re.match(pattern, text)), None)
    assert found, f"tests/documented.py has no treatment for: {text}"
    return found


def placeholders(text: str) -> list[str]:
    """Words in capitals that the reader is to replace; shell variables and values of options are none."""
    return sorted(set(re.findall(r"(?<![\w$./={-])[A-Z]{2,}(?:_[A-Z]+)*\b(?![=.+\w])", text)))


def fill_in(text: str) -> str:
    """The command with a value for every placeholder."""
    values = VALUES | {k: v for pattern, some in SPECIAL_VALUES if re.search(pattern, text) for k, v in some.items()}
    for name in placeholders(text):
        assert name in values, f"tests/documented.py has no value for {name} in: {text}"
        text = re.sub(rf"(?<![\w$./={{-]){name}\b", values[name], text)
    return text
