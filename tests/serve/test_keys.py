"""Keys: shown once, kept as hashes, revoked while a server runs."""

import json
import re
import time

import pytest

from alignvec.errors import AlignvecError
from alignvec.serve import keys as module
from alignvec.serve.keys import Keys
from alignvec.serve.security import Access
from conftest import refused, run


@pytest.fixture(autouse=True)
def no_key_of_ours(monkeypatch):
    monkeypatch.delenv("ALIGNVEC_API_KEY", raising=False)


@pytest.fixture
def state(tmp_path):
    return tmp_path / "state.sqlite"


def test_a_key_is_printed_once_and_only_its_hash_is_kept(state):
    first = run("keys", "add", "ci", "--state", state).stdout.strip()
    second = json.loads(run("keys", "add", "ann", "--state", state, "--json").stdout)["key"]
    for key in (first, second):
        assert re.fullmatch(r"av-[\w-]{43}", key)
        for file in state.parent.iterdir():
            assert key.encode() not in file.read_bytes()
    assert first != second
    keys = Keys(state)
    assert (keys.owner(first), keys.owner(second)) == ("ci", "ann")
    listed = json.loads(run("keys", "list", "--state", state, "--json").stdout)
    assert [one["name"] for one in listed] == ["ann", "ci"]
    assert "ann" in run("keys", "list", "--state", state).stdout


@pytest.mark.parametrize("wrong", ["", "av-", "x", "é", "\udcff", "x" * 10**6, "ci", "%"])
def test_another_key_is_nobodys(state, wrong):
    keys = Keys(state)
    key = keys.add("ci")
    assert keys.owner(wrong) is None
    assert keys.owner(key[:-1]) is None
    assert keys.owner(f"{key} ") is None
    assert keys.owner(key) == "ci"


def test_keys_come_and_go_while_a_server_runs(state, monkeypatch):
    now = time.monotonic()
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    server = Keys(state)
    assert server.owner("x") is None
    key = run("keys", "add", "ci", "--state", state).stdout.strip()
    now += 1.001
    assert server.owner(key) == "ci"
    assert "revoked: ci" in run("keys", "revoke", "ci", "--state", state).stdout
    now += 1.001
    assert server.owner(key) is None
    own = server.add("ann")  # by the server itself: at once
    assert server.owner(own) == "ann"
    server.revoke("ann")
    assert server.owner(own) is None


def test_the_file_is_not_read_at_each_request(state, monkeypatch):
    keys = Keys(state)
    key = keys.add("ci")
    keys.owner(key)
    monkeypatch.setattr(keys, "_database", None)
    assert keys.owner(key) == "ci"
    assert keys.names() == ["ci"]


def test_the_key_of_the_environment_counts(state, monkeypatch):
    monkeypatch.setenv("ALIGNVEC_API_KEY", "secret")
    keys = Keys(state)
    keys.add("ci")
    assert keys.owner("secret") == "environment"
    assert keys.names() == ["environment", "ci"]
    assert [one.name for one in keys.stored()] == ["ci"]
    assert "'environment'" in refused("keys", "add", "environment", "--state", state)
    monkeypatch.setenv("ALIGNVEC_API_KEY", "secret\n")  # as a file of secrets has it
    assert Access(Keys(state)).owner("Bearer secret") == "environment"
    for nothing in ("", "\n"):
        monkeypatch.setenv("ALIGNVEC_API_KEY", nothing)
        nobody = Keys(state)
        assert nobody.owner("") is None
        assert nobody.names() == ["ci"]


def test_what_cannot_be_done_is_said(state):
    assert "no profiles and keys at" in refused("keys", "list", "--state", state)
    assert "no profiles and keys at" in refused("keys", "revoke", "ci", "--state", state)
    assert not state.exists()
    run("keys", "add", "ci", "--state", state)
    assert "there is a key 'ci' already" in refused("keys", "add", "ci", "--state", state)
    assert "1 to 64 letters" in refused("keys", "add", "c i", "--state", state)
    assert "did you mean 'ci'?" in refused("keys", "revoke", "cii", "--state", state)
    with pytest.raises(AlignvecError, match="unknown key"):
        Keys(state).revoke("\ud800")
