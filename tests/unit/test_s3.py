"""Storage against a real S3 server, with what a busy or distant one does to a tenth of the requests."""

import hashlib
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import s3

from fer_ray import storage

REPO = Path(__file__).parents[2]
WORK = """
import hashlib, json, os, pickle, sys
from concurrent.futures import ThreadPoolExecutor
from fer_ray import storage
root = "s3://bucket/" + sys.argv[1]
contents = {f"{root}/{n}/file": os.urandom(n) for n in (0, 1, 1000, 300_000, 12_000_000)}
def whole(item):
    storage.write_bytes(*item)
    return storage.read_bytes(item[0]) == item[1] and storage.stat(item[0])[0] == len(item[1])
with ThreadPoolExecutor(4) as pool:
    assert all(pool.map(whole, list(contents.items()) * 4))
big = f"{root}/12000000/file"
assert all(storage.read_range(big, n * 1000, 5000) == contents[big][n * 1000: n * 1000 + 5000] for n in range(20))
assert all(storage.sha256(uri) == hashlib.sha256(content).hexdigest() for uri, content in contents.items())
assert storage.list_dirs(root) == sorted(os.path.basename(os.path.dirname(u)) for u in contents)
filesystem, path = pickle.loads(pickle.dumps(storage.resolve(big)))  # as Ray sends it
for _ in range(3):
    with filesystem.open_input_file(path) as stream:
        assert stream.read() == contents[big]
storage.delete_dir(root)
assert not storage.exists(root)
"""


@pytest.fixture(scope="module")
def port():
    with s3.server() as port:
        yield port


def run(port: int, code: str, *arguments: str, **settings: str | None) -> subprocess.CompletedProcess:
    """In a process of its own, with the environment that a user sets, and `settings`; None removes a variable."""
    environment = {k: v for k, v in (os.environ | s3.environment(port) | settings).items() if v is not None}
    return subprocess.run([sys.executable, "-c", code, *arguments], cwd=REPO, env=environment, capture_output=True,
                          text=True, timeout=240)


def test_right_bytes_from_a_server_that_breaks_a_tenth_of_the_requests(port):
    with s3.faulty(port, fraction=0.1, seed=1) as (proxy, injected, _):
        done = run(proxy, WORK, "faulty")
    assert done.returncode == 0, done.stderr
    assert sum(injected.values()) - injected["none"] >= 10, injected


@pytest.mark.parametrize("size", [1000, 9_000_000])  # in one piece and in parts
def test_a_body_that_ends_early_counts_once(port, size):
    content = os.urandom(size)
    with s3.in_this_process(port):
        storage.write_bytes("s3://bucket/early", content)
    with s3.faulty(port, fraction=0.5, faults=("truncated",)) as (proxy, injected, _), s3.in_this_process(proxy):
        read = {(storage.sha256("s3://bucket/early"), storage.read_bytes("s3://bucket/early")) for _ in range(5)}
    assert injected["truncated"] >= 5
    assert read == {(hashlib.sha256(content).hexdigest(), content)}


def test_of_writers_that_meet_one_creates(port):
    code = ("import sys; from fer_ray import storage; "
            "print(storage.create_json('s3://bucket/meet.json', {'by': sys.argv[1]}))")
    with ThreadPoolExecutor(4) as pool:
        created = [done.stdout.strip() for done in pool.map(lambda n: run(port, code, str(n)), range(4))]
    assert sorted(created) == ["False"] * 3 + ["True"]
    read = run(port, "from fer_ray import storage; print(storage.read_bytes('s3://bucket/meet.json').decode())")
    assert json.loads(read.stdout) == {"by": str(created.index("True"))}


ERRORS = (
    ("storage.read_bytes('s3://bucket/none')", "FileNotFoundError: s3://bucket/none"),
    ("storage.read_range('s3://bucket/none', 0, 1)", "FileNotFoundError: s3://bucket/none"),
    ("storage.stat('s3://bucket/none')", "FileNotFoundError: s3://bucket/none"),
    ("storage.read_bytes('s3://no-such-bucket/x')", "StorageError: s3://no-such-bucket: .*NoSuchBucket"),
    ("storage.exists('s3://no-such-bucket/x')", "StorageError: s3://no-such-bucket: .*NoSuchBucket"),
    ("storage.list_dirs('s3://no-such-bucket/x')", "StorageError: s3://no-such-bucket/x: .*NoSuchBucket"),
    ("storage.write_bytes('s3://no-such-bucket/x', b'')", "StorageError: s3://no-such-bucket/x: .*NoSuchBucket"),
    ("storage.create('s3://no-such-bucket/x', b'')", "StorageError: s3://no-such-bucket/x: .*NoSuchBucket"))


@pytest.fixture(scope="module")
def tracebacks(port):
    """The traceback of each call, all from one process."""
    program = "\n".join(["import json, traceback", "from fer_ray import storage", "found = []",
                         *(f"try: {code}\nexcept Exception: found.append(traceback.format_exc())\n"
                           "else: found.append('no error')" for code, _ in ERRORS), "print(json.dumps(found))"])
    done = run(port, program)
    return dict(zip(ERRORS, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize(("code", "raised"), ERRORS)
def test_errors_name_the_uri_and_hold_no_secret(tracebacks, code, raised):
    text = tracebacks[code, raised]
    assert s3.KEYS["AWS_SECRET_ACCESS_KEY"] not in text
    assert re.search(raised, text.strip().splitlines()[-1]), text


@pytest.mark.parametrize(("settings", "said"), [
    ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, "no credentials for S3; set AWS_ACCESS_KEY_ID"),
    ({"AWS_ENDPOINT_URL": "localhost:9000"}, "AWS_ENDPOINT_URL is no URL .*localhost:9000"),
    ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "Could not connect")], ids=["no key", "no url", "no server"])
def test_a_server_out_of_reach_is_never_taken_for_a_file_that_is_not_there(port, settings, said):
    asked = """
from fer_ray import s3, storage
s3.ATTEMPTS = 1
for ask in (storage.exists, storage.stat, storage.read_bytes, storage.sha256, storage.list_files, storage.delete_dir,
            storage.delete_file, lambda uri: storage.read_own_json(uri, {}, ""), lambda uri: storage.create(uri, b""),
            lambda uri: storage.write_bytes(uri, b"")):
    try:
        print("answered", ask("s3://bucket/x"))
    except storage.StorageError as error:
        print(error)
"""
    answers = run(port, asked, HOME="/nonexistent", **settings)
    lines = answers.stdout.strip().splitlines()
    assert len(lines) == 10, answers.stderr
    assert all(re.match(f"s3://bucket/x: {said}", line) for line in lines), lines
