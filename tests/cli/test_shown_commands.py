"""Every command line that is shown somewhere is one that the commands take."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from alignvec.cli.app import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = get_command(app)
OTHERS = {"--lora-scaled", "--stop-timeout", "--no-deps"}  # llama.cpp's, Docker's, pip's
OTHERS |= {  # vLLM's
    "--enable-lora", "--max-loras", "--enable-tower-connector-lora", "--enable-dbo",
    "--tensor-parallel-size", "--pipeline-parallel-size", "--distributed-executor-backend",
    "--enforce-eager", "--max-model-len", "--api-server-count", "--served-model-name",
}  # fmt: skip


def leaves(command, way=()):
    for word, one in getattr(command, "commands", {}).items():
        if hasattr(one, "commands"):
            yield from leaves(one, (*way, word))
        else:
            yield (*way, word), one


LEAVES = dict(leaves(COMMAND))


def shown(text):
    """The calls in a text: lines that begin with the program's name, joined where they go on."""
    joined = re.sub(r"\\\n\s*", " ", text)
    for line in joined.splitlines():
        found = re.match(r"\s*(?:\$ )?(?:\w+=\S+ )*(alignvec .*)", line)
        if found:
            yield found[1]
    yield from re.findall(r"`(alignvec [^`\n]*)`", joined)


def examples():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        blocks = re.findall(r"^```(?:bash|console|sh)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        for call in shown("\n".join(blocks)):
            yield page.name, call
    for way, leaf in LEAVES.items():
        for call in re.findall(r"(?:Example|Then|bank|paper): (alignvec .*)", leaf.epilog or ""):
            yield " ".join(way), call


EXAMPLES = list(examples())


def parsed(words):
    """Raises what a wrong usage raises."""
    way = tuple(words[:2]) if tuple(words[:2]) in LEAVES else tuple(words[:1])
    LEAVES[way].make_context(" ".join(way), list(words[len(way) :]))


@pytest.mark.parametrize(("where", "call"), EXAMPLES, ids=lambda part: part[:40])
def test_what_is_shown_is_understood(where, call):
    call = re.sub(r"\s\(.*$", "", call)  # a remark
    parsed([word for word in shlex.split(call, comments=True)[1:] if word not in ("-q", "--quiet")])


def test_every_option_that_a_page_names_is_there():
    known = {o for leaf in [COMMAND, *LEAVES.values()] for p in leaf.params
             for o in [*p.opts, *p.secondary_opts]} | {"--help", "--version"}  # fmt: skip
    ours = r"`(?:(?!accelerate)[a-z ]+ )?(--[a-z][a-z_-]*)"
    for page in PAGES:
        for option in re.findall(ours, page.read_text("utf-8")):
            assert option in known | OTHERS, f"{page.name}: {option}"


def test_wrong_ones_would_be_noticed():
    assert len(EXAMPLES) > 25
    for words in (
        ["align", "embedded", "--frob", "-o", "x"],
        ["fold"],
        ["fold", "a", "b", "-o", "c"],
    ):
        with pytest.raises(Exception, match=r"frob|issing|unexpected"):
            parsed(words)
