"""Files, command line and environment to one checked configuration; whatever is wrong is one line of a ConfigError."""

import dataclasses
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from fer_ray import checks, config, options, values

CONFIGS = sorted((Path(__file__).parents[2] / "jobs" / "configs").glob("*.yaml"))
KNOWN = values.known_options(config.Config)
NUMBERS = [key for key, kind in KNOWN.items() if values.base(kind) in (int, float)]


def error_of(*argv: str) -> str:
    with pytest.raises(config.ConfigError) as error:
        options.load(list(argv))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def file(tmp_path):
    """Writes a configuration file; its path."""
    def write(content: str | bytes) -> str:
        path = tmp_path / "c.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


@pytest.mark.parametrize("file", CONFIGS, ids=lambda p: p.stem)
def test_every_shipped_configuration_is_valid(file):
    assert options.load(["--config", str(file)]).name == file.stem


def test_later_words_win(file):
    argv = ["--train.lr", "0.5", "--config", file("train: {lr: 0.1, epochs: 3}"), "--train.epochs", "4"]
    train = options.load(argv).train
    assert (train.lr, train.epochs) == (0.1, 4)


def test_values_are_read_by_the_type_of_their_option(file):
    loaded = options.load(["--config", file("name: 010\nprepared: no\ntrain: {lr: 1e-3, epochs: 7}\n"
                                            "tune: {lr: [1, 2]}\nlabels: true\n"
                                            "data: {names: {0: anger, 01: sad, no: fear}}"),
                           "--data.sources", '[{"kind": "jaffe", "root": "x"}]', "--data.table.group_columns", "[age]",
                           "--train.nesterov", "--card", "{limits: none}"])
    assert (loaded.name, loaded.prepared, loaded.train.lr, loaded.train.epochs) == ("010", "no", 0.001, 7)
    assert (loaded.tune.lr, loaded.labels, loaded.train.nesterov) == ([1.0, 2.0], True, True)
    assert loaded.data.names == {"0": "anger", "01": "sad", "no": "fear"}
    assert loaded.data.sources == [config.SourceConfig("jaffe", "x")]
    assert (loaded.data.table.group_columns, loaded.card.limits) == (["age"], "none")


@pytest.mark.parametrize(("argv", "words"), [
    (["--train.epoch", "3"], ["train.epoch", "did you mean 'train.epochs'"]),
    (["--lr", "3"], ["--lr", "did you mean 'train.lr'"]),
    (["--train.backbone", "alexnt"], ["'alexnt'", "alexnet", "resnet152"]),
    (["--train.backbone", "alexnet@300"], ["'alexnet@300'", "@SIDE", "32 to 224 px"]),
    (["--compare.backbones", "[alexnet, lenet]"], ["compare.backbones[1]: 'lenet'"]),
    (["--train.lr", "fast"], ["train.lr", "fast", "a number greater than 0"]),
    (["--train.momentum", "1", "--train.epochs", "0"], ["train.momentum", "train.epochs"]),
    (["--config", "nowhere.yaml", "--train.lr"], ["nowhere.yaml", "--train.lr: a value is missing"]),
    (["--split.folds", "2", "--split.fold", "5"], ["split.folds", "at least 3", "split.fold: 5"]),
    (["--train.nesterov", "true", "--train.momentum", "0"], ["train.nesterov"]),
    (["--train.class_weights", "balanced", "--train.sampling", "balanced"], ["train.class_weights", "train.sampling"]),
    (["--train.num_workers", "2", "--train.min_workers", "3", "--train.clip_norm", "-1"],
     ["train.min_workers", "train.clip_norm"]),
    (["--faces.detector", "yunet"], ["faces.model"]),
    (["train.yaml"], ["'train.yaml'", "--option value"]),
    (["--labels", "maybe"], ["labels: 'maybe' must be true or false"]),
    (["--data.sources", "[{kin: jaffe}, {kind: x}]"], ["data.sources[0].kin", "data.sources[1].kind: 'x' must be one"]),
    (["--evaluate.also", "[{root: a, name: x}, {root: b, name: x}, {root: c}]"], ["one name", "name of its own"]),
])
def test_one_line_names_all_that_is_wrong(argv, words):
    message = error_of(*argv)
    assert all(word in message for word in words)


def test_unknown_key_in_a_file_suggests_the_nearest(file):
    message = error_of("--config", path := file("train: {momentun: 0.5}\ndata: {sources: [{kin: jaffe}]}\n"))
    assert f"{path}: unknown key 'train.momentun' (did you mean 'train.momentum'?)" in message
    assert f"{path}: unknown key 'data.sources[0].kin' (did you mean 'data.sources[0].kind'?)" in message


def test_no_rule_is_applied_to_a_default_that_stands_for_a_wrong_value():
    assert "min_workers" not in error_of("--train.num_workers", "many", "--train.min_workers", "3")


@pytest.mark.parametrize("key", NUMBERS)
def test_every_number_is_finite_and_in_its_range(key):
    for value in ("nan", "inf", "-inf", "-1", "-0.001", "null", "", "one"):
        assert f"{key}: {value!r} must be {values.legal(KNOWN[key])}" in error_of(f"--{key}={value}")


@pytest.mark.parametrize("key", ["tune.lr", "tune.momentum", "tune.weight_decay", "tune.label_smoothing",
                                 "tune.batch_sizes"])
def test_every_number_of_a_list_is_finite_and_in_its_range(key):
    for value in ("nan", "inf", "-1"):
        assert f"{key}[1]: {value!r} must be a" in error_of(f"--{key}", f"[0.1, {value}]")


def test_a_configuration_made_in_code_is_held_to_the_same_rules():
    train = config.TrainConfig(lr=float("nan"), epochs=0, batch_size=2, num_workers=3)
    with pytest.raises(config.ConfigError, match="train.epochs: 0 .*train.lr: nan .*train.batch_size: 2 is smaller"):
        checks.check(config.Config(train=train))


@pytest.mark.parametrize(("content", "words"), [
    ("", ["is empty", "keys and values"]),
    ("# nothing\n", ["is empty"]),
    ("- a\n", ["holds ['a']", "keys and values"]),
    (b"\xff\xfename", ["is not UTF-8 text (byte 0)"]),
    ("train: {lr: 1, epochs: 2, lr: 2}", ["line 1: the key 'lr' stands there twice"]),
    ("train:\n  lr: null\n  epochs:\n", ["train.lr: null must be a number", "train.epochs: null must be a whole"]),
    ("train:\ndata: [1]\nfaces: x", ["train: null must be keys and values", "data: ['1'] must", "faces: 'x' must"]),
    ("data: {exclude: ~, names: {a: null}, sources: {a: b}}",
     ["data.exclude: null must be a path", "data.names.a: null must be text", "data.sources: {'a': 'b'} must be"]),
    ("[" * 5000, ["nested too deeply"]),
    ("a: " * 20, ["is not YAML"]),
    ("train: {lr: &x [*x]}", ["train.lr: [[", "must be a number"]),
    ("train: !!python/name:os.system", ["is not YAML"]),
    ("? [a]\n: b", ["a key must be text"]),
])
def test_a_file_that_is_wrong_is_told_in_one_line(file, content, words):
    message = error_of("--config", path := file(content))
    assert path in message and len(message) < 1000
    assert all(word in message for word in words), message


@pytest.mark.parametrize("key", ["storage", "train.weights", "evaluate.checkpoint", "predict.checkpoint",
                                 "predict.images"])
@pytest.mark.parametrize("uri", ["s3:/x", "s3:bucket", "S3://bucket/x", "S3:x", "file:x", "file:/x", "http://h/x"])
def test_a_uri_that_is_written_wrongly_is_no_local_folder(key, uri):
    assert f"{key}: {uri!r} is of an unknown kind; use a path, file:///... or s3://bucket" in error_of(f"--{key}", uri)


@pytest.mark.parametrize("key", ["data.root", "data.exclude", "data.table.file", "data.table.images"])
def test_raw_data_lies_on_this_machine_or_in_a_bucket(key):
    for uri in ("s3:x", "https://host/x", "file:x"):
        assert f"{key}: {uri!r} is of an unknown kind" in error_of(f"--{key}", uri)
    for uri in ("s3://bucket/x", "file:///x"):
        assert options.load([f"--{key}", uri])


def test_a_detector_lies_on_this_machine():
    assert "faces.model: 's3://bucket/x' must be a path on this machine" in error_of("--faces.model", "s3://bucket/x")


@pytest.mark.parametrize("url", ["x", "host:9000", "http://", "http://host:port", "ftp://host"])
def test_an_endpoint_that_is_no_url_is_told_before_the_work(url, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    assert f"AWS_ENDPOINT_URL: {url!r} in the environment must be a URL" in error_of("--storage", "s3://bucket/x")
    assert options.load([]).storage  # nobody asks for S3
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9000")
    assert options.load(["--storage", "s3://bucket/x"]).storage == "s3://bucket/x"


def test_a_missing_extra_is_named_before_the_work(monkeypatch):
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(config.ConfigError, match=r"train.mlflow: .*\.\[mlflow\]"):
        options.load(["--train.mlflow", "http://x"])


@pytest.mark.parametrize("argv", [["s3://KEY:TOPSECRET@b"], ["--train.lr=s3://KEY:TOPSECRET@b"], ["--train.epochs", "x",
                                  "--data.root", "s3://KEY:TOPSECRET@b"], ["--data.sources", "s3://KEY:TOPSECRET@b"],
                                  ["--train", "s3://KEY:TOPSECRET@b"], ["--x=s3://KEY:TOPSECRET@b"],
                                  [f"--train.lr=s3://TOPSECRET:{'x' * 200}@b/{'x' * 200}"]])
def test_no_message_repeats_credentials(argv):
    assert "TOPSECRET" not in error_of(*argv)


# --- paths -----------------------------------------------------------------------------------------------


def test_all_paths_are_absolute_before_anything_else_sees_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FER_DATA", "/data")
    monkeypatch.setenv("HOME", "/home/me")
    typed = options.load(["--storage", "out", "--data.root", "$FER_DATA/sets", "--data.exclude", "~/x.csv",
                          "--data.sources", "[{root: CK+}, {root: ~/jaffe, name: two}]", "--train.weights", "w.pt",
                          "--faces.model", "../m.onnx", "--evaluate.checkpoint", "a", "--predict.images", "b",
                          "--predict.checkpoint", "file:///c", "--train.mlflow", "mlruns", "--data.table.images",
                          "$FER_DATA/images", "--evaluate.also",
                          "[{root: new, name: n}, {root: '${FER_DATA}', name: m}]"])
    assert typed.storage == "out"
    found = options.absolute(typed)
    assert found.storage == f"{tmp_path}/out"
    assert (found.data.root, found.data.exclude) == ("/data/sets", "/home/me/x.csv")
    assert [source.root for source in found.data.sources] == ["CK+", "/home/me/jaffe"]  # CK+: below data.root
    assert [source.root for source in found.evaluate.also] == ["new", "/data"]
    assert (found.train.weights, found.train.mlflow) == (f"{tmp_path}/w.pt", f"{tmp_path}/mlruns")
    assert (found.faces.model, found.data.table.images) == (f"{tmp_path.parent}/m.onnx", "/data/images")
    assert (found.evaluate.checkpoint, found.predict.images) == (f"{tmp_path}/a", f"{tmp_path}/b")
    assert found.predict.checkpoint == "file:///c"
    assert options.absolute(found) == found


def test_what_is_no_path_stays_as_it_is():
    typed = options.load(["--storage", "s3://bucket/x", "--train.mlflow", "http://host:5000"])
    found = options.absolute(typed)
    assert found == typed and found.train.weights == "imagenet" and found.data.exclude == ""


def test_a_variable_that_is_not_set_or_secret_is_not_part_of_a_path(monkeypatch):
    monkeypatch.delenv("FER_DATA", raising=False)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "TOPSECRET")
    for root in ("$FER_DATA", "${FER_DATA}/x", "$AWS_SECRET_ACCESS_KEY"):  # the verb says so if it needs the folder
        assert options.absolute(options.load(["--data.root", root])).data.root == root
    with pytest.raises(config.ConfigError, match=r"storage: \$FER_DATA names an environment variable that is not set"):
        options.absolute(options.load(["--storage", "$FER_DATA"]))


def test_a_variable_may_hold_a_uri_which_is_checked_then(monkeypatch):
    monkeypatch.setenv("OUT", "s3://bucket/x")
    assert options.absolute(options.load(["--storage", "$OUT"])).storage == "s3://bucket/x"
    monkeypatch.setenv("OUT", "s3://KEY:TOPSECRET@bucket/x")
    with pytest.raises(config.ConfigError, match="storage: carries credentials") as error:
        options.absolute(options.load(["--storage", "$OUT"]))
    assert "TOPSECRET" not in str(error.value)


# --- anything at all -------------------------------------------------------------------------------------

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
trees = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3)
                     | st.dictionaries(st.text(max_size=4) | st.sampled_from(sorted(KNOWN)), inner, max_size=3),
                     max_leaves=8)


def outcome(argv: list[str]) -> None:
    """A configuration or one line: no other exception."""
    try:
        assert isinstance(options.load(argv), config.Config)
    except config.ConfigError as error:
        assert str(error)


@given(key=st.sampled_from(sorted(KNOWN)), value=trees)
@example(key="data.names", value={"a": {}})
def test_any_tree_gives_a_configuration_or_one_error(tmp_path_factory, key, value):
    for part in reversed(key.split(".")):
        value = {part: value}
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(yaml.safe_dump(value))
    outcome(["--config", str(path)])


@given(st.binary(max_size=40))
@example(b"train: !!int x")
@example(b"a: *b")
@example(b"<<: 1")
@example(b"<<: {train: {lr: 1}}")
def test_any_bytes_give_a_configuration_or_one_error(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "bytes.yaml"
    path.write_bytes(content)
    outcome(["--config", str(path)])


words = st.one_of(st.sampled_from([f"--{key}" for key in sorted(KNOWN)]), st.text(max_size=6),
                  st.sampled_from(["--", "-", "--=", "--config", "--config=\0", "--config=/", "1", "[", "{a: b}"]))


@given(st.lists(words, max_size=6))
@example(["--data.names={1: [}", "--train.epochs=" + "1" * 5000, "--train.lr=" + "1" * 5000])
@example(["--storage=\0", "--name=\udcff", "--data.root=\udcff"])
def test_any_words_give_a_configuration_or_one_error(argv):
    outcome(argv)


def test_every_text_that_names_a_path_is_known_as_one():
    """A new option whose name says that it holds a path must have a type that says so too."""
    paths = ("root", "file", "images", "model", "checkpoint", "storage", "exclude", "weights", "folder")
    missing = [key for key, kind in KNOWN.items()
               if key.rpartition(".")[2] in paths and values.base(kind) is str and not values.text_of(kind)]
    assert not missing


def test_options_that_nothing_uses_do_not_exist():
    package = Path(config.__file__).parent
    code = "\n".join(path.read_text() for path in package.rglob("*")
                     if path.suffix in (".py", ".j2") and path.name not in ("config.py", "checks.py"))
    leaves = [key for key, kind in KNOWN.items() if not dataclasses.is_dataclass(kind)]
    unused = [key for key in leaves if f".{key.rpartition('.')[2]}" not in code]
    assert not unused
