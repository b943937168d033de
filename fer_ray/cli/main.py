"""The verbs of the command line: `fer_ray VERB OPTIONS`, which `jobs/VERB.py OPTIONS` runs too."""

from __future__ import annotations

import importlib
import os
import shlex
import sys

from fer_ray import options, storage, values
from fer_ray.cli import ending, reference
from fer_ray.config import Config, ConfigError
from fer_ray.errors import UserError

# Verb: the function that runs it, by its module in this package, and what it does. The modules are imported only after
# the options are read, so that `--help` and a typing error answer at once.
VERBS = {
    "pipeline": ("stages.run_pipeline", "Prepare, train and evaluate: from a raw data set to a report."),
    "prepare": ("stages.run_prepare", "Find and crop the faces of a data set, split it and audit the split."),
    "train": ("stages.run_train", "Fine-tune a backbone on a prepared set. The same name resumes."),
    "evaluate": ("stages.run_evaluate", "Score the best checkpoint on the test split and write the report."),
    "predict": ("stages.run_predict", "Say the expression in photographs and videos without labels."),
    "export": ("stages.run_export", "Write a trained network as ONNX and for PyTorch, and score each beside the "
                                    "original."),
    "serve": ("serving.run_serve", "Answer requests over HTTP, with a web page that takes pictures and the webcam."),
    "tune": ("studies.run_tune", "Search learning rate and momentum on a prepared set. The same name goes on with a "
                                 "search that was interrupted."),
    "crossval": ("studies.run_crossval", "Several runs for one score: folds, seeds, or the paper's split beside an "
                                         "honest one."),
    "compare": ("studies.run_compare", "Train several backbones alike, on the same split, and compare them."),
    "crossdata": ("studies.run_crossdata", "Train on each data set of data.sources and test on every other."),
    "audit": ("audit.run_audit", "Audit a prepared set: who and what stands in more than one split, and which labels "
                                   "are doubtful (--labels)."),
    "paper": ("paper.run_paper", "The paper's study on your data, in its order, and what its scores are worth on "
                                 "people never seen."),
}


def main() -> None:
    """The console command `fer_ray VERB OPTIONS`."""
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb in VERBS:
        return run(verb, sys.argv[2:])
    lines = [f"  {name:10} {description}" for name, (_, description) in VERBS.items()]
    overview = "\n".join(["usage: fer_ray VERB OPTIONS", "", *lines, "", "fer_ray VERB --help explains its options."])
    if verb in ("-h", "--help"):
        print(overview)
    else:
        sys.exit(f"error: unknown verb {verb!r}\n{overview}")


def run(verb: str, argv: list[str] | None = None) -> None:
    """Run a verb with these options, by default those of the process, and end the process as the verb ended.

    Exit codes: 0; 1 with one line on stderr if the user can mend what went wrong; 130 and 143 after SIGINT and SIGTERM.
    """
    argv = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(argv):
        print(reference.help_of(verb, VERBS[verb][1]))
        return
    ending.listen()
    try:
        result = _run(verb, argv)
        print(f"result: {result}", flush=True)
    except UserError as error:
        sys.exit(f"error: {_own_words(error)}")
    except (KeyboardInterrupt, SystemExit) as error:
        code = ending.by_signal(error)
        if code is None:
            raise
        ending.tell(code)
        sys.exit(code)
    except Exception as error:
        if line := ending.explain(error):
            sys.exit(f"error: {line}")
        raise
    finally:
        if "ray" in sys.modules:  # as the interpreter ends, Ray would first wait half a second for output
            sys.modules["ray"].shutdown()


def _run(verb: str, argv: list[str]) -> str:
    """Read the options and call the verb's function; the URI of its result."""
    config = read_options(argv)
    from fer_ray.tune import space

    module, _, name = VERBS[verb][0].partition(".")
    return getattr(importlib.import_module(f"fer_ray.cli.{module}"), name)(space.with_best_settings(config))


def read_options(argv: list[str]) -> Config:
    """The checked configuration, with absolute paths, of a command line and the environment. Raises: ConfigError."""
    if more := options.from_environment():
        shown = ["(hidden)" if values.CREDENTIALS.search(word) else word for word in more]
        print(f"{options.VARIABLE} adds: {shlex.join(shown)}", file=sys.stderr, flush=True)
    typed = options.load([*argv, *more])
    _refuse_storage_that_ends_with_the_job(typed.storage)
    return options.absolute(typed)


def _own_words(error: Exception) -> str:
    """The message of the original error, without the stack of each process that Ray has passed it through."""
    while cause := getattr(error, "cause", None):
        error = cause
    return str(error).partition("\nFailed to apply UDF transform")[0]  # advice that Ray Data appends, on its retries


def _refuse_storage_that_ends_with_the_job(uri: str) -> None:
    # `ray job submit` runs the job in a copy of the repository, and removes that folder with all results in it.
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and not storage.is_absolute(uri):
        raise ConfigError(f"storage: {uri} would lie in the submitted job's own folder, which is removed after it; "
                          "give s3://bucket/prefix or the full path of a folder")
