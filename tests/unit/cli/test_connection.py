"""What can be known of joining Ray without starting it: the token's file, and what its errors become."""

import re
import stat

import pytest
from ray import exceptions

from fer_ray.cli import connection, ending
from fer_ray.config import ConfigError
from fer_ray.data.manifest import DataError


@pytest.fixture
def token(tmp_path, monkeypatch):
    """Where Ray looks for its token."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / ".ray" / "auth_token"


def test_a_new_token_is_readable_for_its_user_alone_and_stays(token):
    connection._keep_token_private(may_create=True)
    content = token.read_text()
    assert len(content) == 64 and stat.S_IMODE(token.stat().st_mode) == 0o600
    connection._keep_token_private(may_create=True)
    assert token.read_text() == content and list(token.parent.iterdir()) == [token]


def test_an_existing_token_is_closed_to_others(token):
    token.parent.mkdir()
    token.write_text("secret")
    token.chmod(0o644)
    connection._keep_token_private(may_create=False)
    assert token.read_text() == "secret" and stat.S_IMODE(token.stat().st_mode) == 0o600


@pytest.mark.parametrize(("name", "value"), [("RAY_AUTH_TOKEN", "x"), ("RAY_AUTH_TOKEN_PATH", "/x"),
                                             ("RAY_AUTH_MODE", "disabled")])
def test_no_token_is_made_where_the_user_has_decided_otherwise(name, value, token, monkeypatch):
    monkeypatch.setenv(name, value)
    connection._keep_token_private(may_create=True)
    assert not token.exists()


def test_whoever_joins_a_cluster_needs_its_token_and_no_new_one(token):
    connection._keep_token_private(may_create=False)
    assert not token.parent.exists()


def test_a_token_that_cannot_be_kept_is_one_line(token):
    token.parent.write_text("no folder")
    with pytest.raises(ConfigError, match="auth_token: .*name another file by RAY_AUTH_TOKEN_PATH"):
        connection._keep_token_private(may_create=True)


def as_raised_by_a_task(cause: Exception) -> Exception:
    return exceptions.RayTaskError("work", "Traceback ...\nValueError: x", cause).as_instanceof_cause()


@pytest.mark.parametrize("wrapped", [lambda error: error, as_raised_by_a_task,
                                     lambda error: as_raised_by_a_task(as_raised_by_a_task(error))])
def test_an_error_of_ray_is_one_line(wrapped):
    error = exceptions.OutOfMemoryError("Memory on the node was low.\n\nRefer to the manual ...")
    assert ending.explain(wrapped(error)) == "Ray: Memory on the node was low; the same command goes on where it was"


def test_the_actor_that_died_is_named():
    error = exceptions.RayActorError("7f", "The actor died unexpectedly before finishing this task.\n"
                                      "\tclass_name: TrainController\n\tactor_id: 7f\nLast lines of the log: ...")
    assert ending.explain(error) == ("Ray: The actor died unexpectedly before finishing this task (TrainController); "
                                     "the same command goes on where it was")


@pytest.mark.parametrize("error", [ValueError("x"), as_raised_by_a_task(ValueError("x")),
                                   as_raised_by_a_task(DataError("x")),
                                   as_raised_by_a_task(exceptions.UserCodeException("UDF failed"))])
def test_a_fault_of_the_code_or_of_the_input_is_not_rays(error):
    assert ending.explain(error) is None


@pytest.mark.parametrize("address", ["127.0.0.1:1", "[::1]:1", "no.such.machine.invalid:6379", "localhost:99999"])
def test_a_cluster_that_is_not_there_is_one_line_at_once(address):
    with pytest.raises(connection.ConnectionFailedError, match=f"RAY_ADDRESS {re.escape(address)}: no Ray to join: .+"):
        connection._init(address, {})
