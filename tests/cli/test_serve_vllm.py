"""`alignvec serve --engine vllm` up to where it becomes vLLM."""

import sys

import pytest

from conftest import refused, run, write_low_rank


@pytest.fixture(scope="module")
def vectors(tiny, nudged, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vllm")
    run("extract", tiny(), nudged(), "-o", folder / "dense")
    write_low_rank(tiny(), folder / "small")
    return folder


@pytest.fixture
def became(monkeypatch, tmp_path):
    """What vLLM would be started with."""
    calls = []
    for name in ("VLLM_PLUGINS", "VLLM_API_KEY", "ALIGNVEC_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("alignvec.cli.vllm.check_vllm", lambda extras: None)
    monkeypatch.setattr("alignvec.cli.vllm._execute", lambda *told: calls.append(told))
    return calls


@pytest.fixture
def words(tiny, vectors):
    return ["serve", tiny(), "--engine", "vllm", "--vector", f"tea={vectors / 'small'}"]


def test_vllm_is_told_what_was_asked(words, became, tiny, vectors, tmp_path):
    said = run(*words, "--name", "cup", "--port", "81", "--set", "tea=0.5", "--dtype", "bfloat16",
               "--", "--tensor-parallel-size", "2").stdout  # fmt: skip
    ((folder, flags, told),) = became
    assert folder == tiny()
    assert flags == ["--tensor-parallel-size", "2", "--host", "127.0.0.1", "--port", "81",
                     "--served-model-name", "cup", "--dtype", "bfloat16"]  # fmt: skip
    assert told["ALIGNVEC_VECTORS"] == f"tea={vectors / 'small'}"
    assert told["ALIGNVEC_SET"] == "tea=0.5"
    assert told["ALIGNVEC_STATE"] == str(tmp_path / "alignvec-serve.sqlite")
    assert "alignvec" in told["VLLM_PLUGINS"].split(",")
    assert "VLLM_API_KEY" not in told
    assert "cup at http://127.0.0.1:81/v1, knobs: tea" in said
    assert "alignvec playground --url http://127.0.0.1:81" in said


def test_plugins_of_the_user_are_kept(words, became, monkeypatch):
    for given, kept in (("mine", "alignvec,mine"), ("", "alignvec"), ("alignvec", "alignvec")):
        monkeypatch.setenv("VLLM_PLUGINS", given)
        run(*words)
        assert became[-1][2]["VLLM_PLUGINS"] == kept


def test_others_are_let_in_with_a_key_alone(words, became, monkeypatch):
    everywhere = [*words, "--host", "0.0.0.0"]
    assert "there is no key" in refused(*everywhere)
    for name in ("VLLM_API_KEY", "ALIGNVEC_API_KEY"):
        monkeypatch.setenv(name, "")
        assert "there is no key" in refused(*everywhere)
        monkeypatch.delenv(name)
    for flags in (["--api-key", ""], ["--api_key="], ["--api-key"], ["--api-key", "--seed", "1"]):
        assert "there is no key" in refused(*everywhere, "--", *flags)
    run(*everywhere, "--insecure")
    run(*everywhere, "--", "--api-key", "k")
    run(*everywhere, "--", "--api_key=k")
    monkeypatch.setenv("VLLM_API_KEY", "k")
    run(*everywhere)
    monkeypatch.delenv("VLLM_API_KEY")
    monkeypatch.setenv("ALIGNVEC_API_KEY", "k")
    run(*everywhere)
    assert became[-1][2]["VLLM_API_KEY"] == "k"
    monkeypatch.delenv("ALIGNVEC_API_KEY")
    run("keys", "add", "ann")  # which vLLM knows nothing of
    assert "do not open vLLM" in refused(*words)


def test_what_is_wrong_is_said_before_vllm_starts(words, became, vectors, tiny, monkeypatch):
    assert "unknown knob 'tae'" in refused(*words, "--set", "tae=1")
    assert "alignvec compress" in refused(*words[:4], "--vector", f"tea={vectors / 'dense'}")
    assert "nowhere" in refused(*words[:4], "--vector", "tea=nowhere")
    assert "comma" in refused(*words[:4], "--vector", "tea=a,b")
    assert "nowhere" in refused(*words, "--router", "nowhere")
    assert "nowhere" in refused("serve", "nowhere", *words[2:])
    for flag in ("--host", "--port=1", "--model", "--served_model_name"):
        assert "after --: give" in refused(*words, "--", flag, "x")
    for option, instead in (("--max-rows=3", "--max-num-seqs"), ("--drain=1", "--shutdown"),
                            ("--no-page", "playground"), ("--device=cpu", "built")):  # fmt: skip
        line = refused(*words, option)
        assert option.partition("=")[0] in line
        assert instead in line
    monkeypatch.setenv("ALIGNVEC_WAY", "resolver")
    assert "ALIGNVEC_WAY" in refused(*words)
    assert not became


def test_a_dense_vector_goes_into_the_weights(words, became, tiny, vectors, monkeypatch, tmp_path):
    monkeypatch.setenv("ALIGNVEC_CACHE", str(tmp_path / "cache"))
    both = [*words, "--vector", f"dry={vectors / 'dense'}", "--fold", "dry=0.5"]
    for _ in range(2):
        said = run(*both, "--set", "tea=0.3").stdout
        assert "in the weights: dry=0.5" in said
        assert "knobs: tea (" in said
    (first, _, told), (second, *_) = became
    assert first == second
    assert told["ALIGNVEC_VECTORS"] == f"tea={vectors / 'small'}"
    assert told["ALIGNVEC_ANY_BASE"] == "1"
    run("fold", tiny(), "--vector", f"dry={vectors / 'dense'}", "--set", "dry=0.5", "-o", "there")
    for file in first.glob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "there" / file.name).read_bytes()
    run(*words[:4], *both[-4:])  # and nothing else
    assert became[-1][2]["ALIGNVEC_VECTORS"] == ""
    assert "unknown knob 'dyr'" in refused(*both[:-1], "dyr=1")
    assert "unknown knob 'dry'" in refused(*both, "--set", "dry=1")
    other = ["serve", tiny(seed=1), *both[2:]]
    assert "base" in refused(*other)
    run(*other, "--any-base")
    assert "--engine vllm" in refused(*words[:2], *both[4:])


def test_another_base_is_another_base(tiny, words, became):
    other = ["serve", tiny(seed=1), *words[2:]]
    assert "base" in refused(*other)
    run(*other, "--any-base")
    assert became[-1][2]["ALIGNVEC_ANY_BASE"] == "1"


def test_without_vllm_it_says_where_to_get_it(words, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.setattr("alignvec.cli.inputs.find_spec", lambda _: None)
    assert "pip install 'alignvec[vllm]'" in refused(*words)


def test_flags_are_vllms_alone(words):
    assert "--engine vllm" in refused(*words[:2], "--", "--max-num-seqs", "4")
