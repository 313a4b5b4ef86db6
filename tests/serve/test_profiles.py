"""Profiles outlive kills, and nobody's change is lost to another's."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress

import pytest

from alignvec.errors import AlignvecError
from alignvec.serve.errors import Refused
from alignvec.serve.keys import Keys
from alignvec.serve.profiles import Profiles


@pytest.fixture
def file(tmp_path):
    return tmp_path / "state.sqlite"


def refusal(call, *arguments, **options):
    with pytest.raises(Refused) as caught:
        call(*arguments, **options)
    return caught.value.status, caught.value.code


def test_a_profile_is_kept_as_it_was_put(file):
    setting = {"medical": "expert", "legal": -0.5, "tone": "80%"}
    put = Profiles(file).put("clinic-staff", setting)
    again = Profiles(file)
    assert again.get("clinic-staff") == put
    assert list(put.setting.items()) == list(setting.items())
    again.put("aa", {})
    assert [one.name for one in again.all()] == ["aa", "clinic-staff"]
    again.delete("aa", put.etag.replace('"', "") + ", *")
    assert again.get("aa") is None


def test_of_two_who_edit_the_second_is_told(file):
    profiles = Profiles(file)
    first = profiles.put("p", {"k": 1})
    second = profiles.put("p", {"k": 2}, if_match=first.etag)
    assert second.etag != first.etag
    assert refusal(profiles.put, "p", {"k": 3}, first.etag) == (412, "profile_changed")
    assert refusal(profiles.put, "p", {"k": 3}, f"W/{second.etag}")[0] == 412
    assert refusal(profiles.put, "p", {"k": 3}) == (428, "if_match_required")
    assert refusal(profiles.put, "p", {"k": 3}, if_none_match="*") == (412, "profile_exists")
    for says_nothing in ('"other"', ""):
        said = refusal(profiles.put, "p", {"k": 3}, if_none_match=says_nothing)
        assert said == (428, "if_match_required")
    assert refusal(profiles.put, "q", {"k": 3}, "*") == (412, "profile_changed")
    assert refusal(profiles.delete, "p", first.etag) == (412, "profile_changed")
    assert refusal(profiles.delete, "p") == (428, "if_match_required")
    assert refusal(profiles.delete, "q", "*") == (404, "profile_not_found")
    assert profiles.get("p") == second
    assert profiles.put("p", {"k": 2}, f'"other", {second.etag}').etag != second.etag
    profiles.put("q", {"k": 1}, if_none_match="*")


def test_one_that_was_made_anew_is_another(file):
    profiles = Profiles(file)
    before = profiles.put("p", {"k": 1})
    profiles.delete("p", before.etag)
    after = profiles.put("p", {"k": 1})
    assert after.version == before.version
    assert refusal(profiles.put, "p", {"k": 2}, before.etag) == (412, "profile_changed")


@pytest.mark.parametrize("name", ["", ".", "../x", "a b", "a/b", "é", "a\n", "-a", "x" * 65, "a\0"])
def test_a_name_that_could_be_anything_else_is_refused(file, name):
    profiles = Profiles(file)
    assert refusal(profiles.put, name, {}) == (400, "invalid_name")
    assert profiles.get(name) is None
    assert refusal(profiles.delete, name, "*")[0] == 404


def test_nobody_fills_the_disk(file, monkeypatch):
    monkeypatch.setattr("alignvec.serve.profiles._MOST", 2)
    profiles = Profiles(file)
    first = profiles.put("a", {})
    profiles.put("b", {})
    assert refusal(profiles.put, "c", {}) == (400, "too_many_profiles")
    profiles.put("a", {"k": 1}, first.etag)


def test_one_of_many_who_write_at_once_wins_each_time(file):
    """Each adds 1 to what it read, as often as it is told that it came too late."""
    Profiles(file).put("p", {"k": 0})

    def count(_):
        profiles = Profiles(file)
        for _ in range(5):
            while True:
                now = profiles.get("p")
                with suppress(Refused):
                    profiles.put("p", {"k": now.setting["k"] + 1}, now.etag)
                    break

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(count, range(4)))
    assert Profiles(file).get("p").setting == {"k": 20}


def test_what_is_not_ours_is_refused_and_stays(tmp_path):
    text, foreign = tmp_path / "text", tmp_path / "foreign"
    text.write_text("no database " * 100)
    with closing(sqlite3.connect(foreign)) as connection:
        connection.execute("CREATE TABLE profile (name)")
    for path, message in (
        (text, "file is not a database"),
        (foreign, "is no file of profiles and keys"),
        (tmp_path, "unable to open"),
    ):
        before = path.read_bytes() if path.is_file() else None
        for kind in (Profiles, Keys):
            with pytest.raises(AlignvecError, match=message) as caught:
                kind(path)
            assert "\n" not in str(caught.value)
        assert before is None or path.read_bytes() == before


def test_profiles_and_keys_share_a_file_whichever_comes_first(tmp_path):
    for name, kinds in (("a", (Profiles, Keys)), ("b", (Keys, Profiles))):
        for kind in kinds:
            kind(tmp_path / name)
        assert Profiles(tmp_path / name).put("p", {}).name == "p"
        assert Keys(tmp_path / name).add("ci")


# Forks writers for as long as it is told to, so that each starts at once.
SPAWNER = """
import os, sys
from pathlib import Path
from alignvec.serve.profiles import Profiles

def write(name, count):
    profiles = Profiles(Path(sys.argv[1]))
    while True:
        count += 1
        found = profiles.get(name)
        profiles.put(name, {"count": count}, found and found.etag)
        os.write(1, f"{name} {count}\\n".encode())

for line in sys.stdin:
    pids = []
    for word in line.split():
        name, count = word.split("=")
        pids.append(os.fork())
        if not pids[-1]:
            write(name, int(count))
    os.write(1, f"pids {' '.join(map(str, pids))}\\n".encode())
    for pid in pids:
        os.waitpid(pid, 0)
    os.write(1, b"dead\\n")
"""
ROUNDS = int(os.environ.get("ALIGNVEC_KILL_ROUNDS", "50"))  # of two kills each


def test_every_acknowledged_write_survives_kill_9(file):
    """Two write at the same time and are killed anywhere: opening, writing, between."""
    chance = random.Random(0)
    kept = {"ann": 0, "bob": 0}  # name -> the last count that was acknowledged
    command = [sys.executable, "-c", SPAWNER, str(file)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as spawner:
        for _ in range(ROUNDS):
            asked = " ".join(f"{name}={count}" for name, count in kept.items())
            print(asked, file=spawner.stdin, flush=True)
            pids, acknowledged, enough = [], 0, chance.randrange(5)
            for line in spawner.stdout:
                name, *words = line.split()
                if name == "dead":
                    break
                if name == "pids":
                    pids = [int(word) for word in words]
                else:
                    kept[name] = int(words[0])
                    acknowledged += 1
                if pids and acknowledged >= enough:
                    for pid in pids:
                        time.sleep(chance.uniform(0, 0.02))
                        os.kill(pid, signal.SIGKILL)
                    pids = []
            stored = {one.name: one.setting["count"] for one in Profiles(file).all()}
            for name, count in kept.items():  # the next one may be there and was not told any more
                assert stored.get(name, 0) in (count, count + 1)
        spawner.stdin.close()
    assert all(count > 0 for count in kept.values()), "nothing was ever written"
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
