"""What is declared is what is imported, extra by extra; `deptry` in `make lint` has the whole."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "alignvec"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CORE = "core"
CAPABILITIES = ("align", "search", "data", "serve", "ui", "harness")
# The extras that a folder or a file may import from; what is not named here has the core alone. The
# command line imports what a command needs when it runs.
NEEDS = {
    "align": ["align"],
    "route": ["search"],
    "search": ["search"],
    "evaluate": ["data"],
    "data": ["data"],
    "data/annotation": ["data", "ui"],
    "evaluate/harness.py": ["harness"],
    "announce.py": ["harness"],
    "serve": ["serve"],
    "serve/vllm": ["vllm"],
    "serve/playground": ["ui"],
    "sqlite.py": ["serve"],
    "cli": CAPABILITIES,
}


def requirements(extra: str) -> dict[str, Requirement]:
    lines = PROJECT["dependencies"] if extra == CORE else PROJECT["optional-dependencies"][extra]
    parsed = map(Requirement, lines)
    return {canonicalize_name(r.name): r for r in parsed if r.name != PROJECT["name"]}


def imported(file: Path) -> set[str]:
    """The distributions that a file imports, at its top or later."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    tops = {module.split(".")[0] for module in modules} - sys.stdlib_module_names - {"alignvec"}
    known = packages_distributions()
    # vLLM has an environment of its own, and is not known here.
    return {canonicalize_name(known.get(top, [top])[0]) for top in tops}


FILES = {file.relative_to(PACKAGE).as_posix(): imported(file) for file in PACKAGE.rglob("*.py")}


def test_a_folder_imports_what_its_extra_declares():
    for name, names in FILES.items():
        folders = [folder for folder in NEEDS if f"{name}/".startswith(f"{folder}/")]
        extras = [CORE, *(extra for folder in folders for extra in NEEDS[folder])]
        declared = {name for extra in extras for name in requirements(extra)}
        assert names <= declared, f"{name} imports {names - declared} beyond {extras}"


def test_what_is_declared_is_imported():
    used = set().union(*FILES.values()) | {"accelerate"}  # accelerate: transformers' Trainer
    extras = (CORE, *CAPABILITIES, "vllm")
    assert {name for extra in extras for name in requirements(extra)} == used


def test_all_is_every_extra_that_a_user_wants():
    (everything,) = PROJECT["optional-dependencies"]["all"]
    assert Requirement(everything).extras == set(CAPABILITIES)


@pytest.mark.parametrize("extra", [CORE, *CAPABILITIES, "test"])
def test_a_floor_is_the_version_that_test_floors_runs(extra):
    """Otherwise: raise the floor, or `make floors`."""
    lines = re.findall(
        r"^([\w.-]+)==(\S+)$", (ROOT / "constraints-floors.txt").read_text(), re.MULTILINE
    )
    pinned = {canonicalize_name(name): version for name, version in lines}
    for name, requirement in requirements(extra).items():
        (floor,) = requirement.specifier
        assert floor.operator == ">="
        if name != "torch":
            same = Requirement(f"{name}=={floor.version}").specifier
            assert pinned[name] in same, f"{name}: {floor} is declared, {pinned[name]} runs"
