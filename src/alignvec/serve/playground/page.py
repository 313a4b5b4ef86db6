"""The page: a talk in two columns, a sweep along one knob, profiles and links.

The server that the page comes from keeps nothing of it but which versions of profiles were seen:
talk, knobs and API key are in the browser and come with each event. All of it is read into models
of text and numbers first: no value goes back as it came, and none can be a file.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from functools import wraps
from typing import Any
from urllib.parse import urlencode

import gradio as gr
import numpy as np
from pydantic import ValidationError

from alignvec.errors import AlignvecError, one_line
from alignvec.serve.playground.client import Client, Trouble
from alignvec.serve.playground.dials import (
    Dials,
    Side,
    Told,
    in_numbers,
    link,
    read_link,
    read_told,
)
from alignvec.serve.playground.parts import LONGEST, MOST_TOKENS, Parts, alert, heading, say
from alignvec.serve.playground.talk import Column, Talk, Turn, ask

POINTS = 5  # of a sweep
_SIDES: tuple[Side, ...] = ("left", "right")
_AT_ONCE, _WAITING = 64, 256  # events of one kind that run, and all that may wait

Update = dict[Any, Any]  # part of the page -> what it becomes
Updates = AsyncGenerator[Update, None]
Seen = dict[str, str | None]  # profile -> the ETag of the version that was seen; None: none was

_COPY = """query => { const url = window.location.origin + window.location.pathname + query;
  navigator.clipboard?.writeText(url).catch(() => {});  // not over plain HTTP; it is shown too
  return url; }"""
_SAME = "value => value"
# A question that nothing answered comes back, before what was typed meanwhile.
_GIVE_BACK = "(now, lost) => [[lost, now].filter(text => text?.trim()).join('\\n'), '']"


def build(client: Client) -> Any:
    """The page of a server, to be launched or mounted (site.py)."""
    with _WithoutFiles(title="alignvec playground", analytics_enabled=False) as page:
        page.queue(max_size=_WAITING, default_concurrency_limit=_AT_ONCE, api_open=False)
        _Page(client).wire(page)
    return page


class _WithoutFiles(gr.Blocks):
    """Gradio takes any value of any part that looks so for a file, and copies or fetches it."""

    async def preprocess_data(
        self, block_fn: Any, inputs: list[Any], *others: Any, **options: Any
    ) -> list[Any]:
        """What a browser sent; refused if it names a file."""
        if _names_file(inputs):
            raise gr.Error("there are no files here", print_exception=False)
        made: list[Any] = await super().preprocess_data(block_fn, inputs, *others, **options)
        return made


def _names_file(value: Any) -> bool:
    if isinstance(value, dict):
        return isinstance(value.get("path"), str) or any(map(_names_file, value.values()))
    return isinstance(value, list) and any(map(_names_file, value))


class _Page(Parts):
    """The parts, and what happens when they are used."""

    def __init__(self, client: Client) -> None:
        super().__init__()
        self.client = client

    def wire(self, page: Any) -> None:
        """Connect the parts with what happens."""
        # The page's own events are no API, and none greys it out.
        quietly: Any = {"show_progress": "hidden", "api_visibility": "private"}
        told = [self.status, self.retry, self.key]
        profile = [self.name, self.dials, self.read, self.key]
        profiles = [*told, self.saved, self.name, self.read]
        sampling = [self.temperature, self.seed, self.tokens, self.key]
        span = [self.low, self.high]

        def on(
            events: Any, act: Callable[..., Updates], inputs: Any, outputs: Any, **more: Any
        ) -> Any:
            return gr.on(events, self._telling(act), inputs, outputs, **more, **quietly)

        on(
            [page.load, self.retry.click, self.key.submit],
            self._open,
            [self.query, self.dials, self.key],
            [*profiles, self.heading, self.dials, self.along, self.knob, *span],
            js="(query, ...rest) => [window.location.search, ...rest]",
        )
        sent = on(
            [self.question.submit, self.send.click],
            self._send,
            [self.question, self.talk, self.dials, self.compare, *sampling],
            [*told, self.talk, self.question, self.lost],
        )
        both = [self.question, self.lost]
        sent.then(None, both, both, js=_GIVE_BACK)
        swept = on(
            [self.sweep_question.submit, self.sweep.click],
            self._run_sweep,
            [self.sweep_question, self.knob, *span, self.dials, *sampling],
            [*told, self.swept],
        )
        # That it was stopped, talk.js shows: what was on its way may still come.
        self.stop.click(None, cancels=[sent])
        self.sweep_stop.click(None, cancels=[swept])
        self.clear.click(None, None, self.talk, js="() => ({turns: []})", cancels=[sent])
        # The server checks what is chosen by its own list of choices, and none outlives it.
        self.along.input(None, self.along, self.knob, js=_SAME).then(
            self._telling(self._range), [self.knob, self.dials], [*told, *span], **quietly
        )
        self.saved.input(None, self.saved, self.name, js=_SAME).then(
            self._telling(self._load), profile, [*profiles, self.dials], **quietly
        )
        on(self.load.click, self._load, profile, [*profiles, self.dials])
        on([self.save.click, self.name.submit], self._save, profile, profiles)
        on(self.delete.click, self._delete, profile, profiles)
        linked = on(
            self.share.click, self._link, [self.name, self.dials, self.key], [*told, self.link]
        )
        linked.success(None, self.link, self.link, js=_COPY)

    def _telling(self, act: Callable[..., Updates]) -> Callable[..., Updates]:
        """What goes wrong is one line on the page; everything else on it stays."""

        @wraps(act)
        async def telling(*given: Any) -> Updates:
            yield {self.status: "", self.retry: gr.Button(visible=False)}
            try:
                async with aclosing(act(*given)) as updates:
                    async for update in updates:
                        yield update
            except AlignvecError as error:
                yield self._trouble(error)
            except ValidationError:
                yield {self.status: alert("The page and its server differ; reload the page.")}

        return telling

    def _trouble(self, error: AlignvecError) -> Update:
        update: Update = {self.status: alert(one_line(error))}
        if isinstance(error, Trouble):
            if error.status == 401:
                update[self.key] = gr.Textbox(visible=True)
            if error.status is None:
                update[self.retry] = gr.Button(visible=True)
        return update

    # What happens: each gives, perhaps several times, the parts that change.

    async def _open(self, query: str, dials: Any, key: str | None) -> Updates:
        """Read what the server has. On a page that is open already, what is set stays."""
        before = Dials.model_validate(dials)
        told = read_told(await self.client.knobs(key))
        saved = await self.client.profiles(key)
        model = await self.client.model(key)
        now = Dials(model=model, knobs=[knob.knob() for knob in told], side=before.side)
        now.left = {knob.name: knob.default for knob in told}
        now.right = dict.fromkeys(now.left, 0.0)
        update: Update = {
            self.heading: heading(model),
            **self._kept({one["name"]: None for one in saved}, ""),
        }
        if before.knobs:
            now.left, now.right = before.left, before.right
            del update[self.name]
        if now.knobs and not before.knobs:
            names = [knob.name for knob in now.knobs]
            update[self.along] = gr.Radio(choices=names, value=names[0])
            update[self.knob] = names[0]
            update[self.low], update[self.high] = now.knobs[0].safe or (-1.0, 1.0)
            try:
                seen, now.left = await self._linked(query, told, now.left, key)
                for name in seen:
                    update |= self._kept({**update[self.read], **seen}, name)
            except AlignvecError as error:
                yield {self.status: alert(f"The link leads nowhere: {one_line(error)}")}
        yield {**update, self.dials: now.model_dump()}

    async def _linked(
        self, query: str, told: Sequence[Told], setting: dict[str, float], key: str | None
    ) -> tuple[Seen, dict[str, float]]:
        """The profile and the setting of a link; `setting` where it names none."""
        name, knobs = read_link(query)
        seen: Seen = {}
        if name is not None:
            profile = await self.client.profile(name, key)
            seen, setting = {name: profile["etag"]}, in_numbers(profile["knobs"], told)
        return seen, (setting if knobs is None else in_numbers(knobs, told))

    async def _send(
        self, question: str, talk: Any, dials: Any, compare: bool, *sampling: Any
    ) -> Updates:
        turns, now = Talk.model_validate(talk), Dials.model_validate(dials)
        if not (asked := _asked(question)):
            return
        columns = [
            Column(
                place=side.capitalize(),
                setting=now.setting(side),
                messages=turns.messages(side.capitalize(), asked),
            )
            for side in (_SIDES if compare else _SIDES[:1])
        ]
        yield {self.question: ""}
        async for turn in self._asking(now.model, asked, columns, *sampling):
            yield {self.talk: Talk(turns=[*turns.turns, turn]).model_dump()}
        if trouble := turn.failure:
            yield {self.talk: turns.model_dump(), self.lost: asked, **self._trouble(trouble)}

    async def _run_sweep(
        self, question: str, along: str, low: Any, high: Any, dials: Any, *sampling: Any
    ) -> Updates:
        now = Dials.model_validate(dials)
        if not (asked := _asked(question)):
            return
        if now.knob(along) is None:
            raise AlignvecError("Choose the knob to sweep along.")
        if not (_is_number(low) and _is_number(high) and low < high):
            raise AlignvecError("A sweep goes from a lower to a higher strength.")
        columns = [
            Column(
                place=f"{strength:g}".replace("-", "\N{MINUS SIGN}"),
                setting={**now.setting("left"), along: strength},
                messages=Talk().messages("", asked),
            )
            for strength in (np.linspace(low, high, POINTS).round(4) + 0.0).tolist()
        ]
        async for turn in self._asking(now.model, asked, columns, *sampling):
            yield {self.swept: Talk(turns=[turn]).model_dump()}
        if trouble := turn.failure:
            yield {self.swept: Talk().model_dump(), **self._trouble(trouble)}

    def _asking(
        self,
        model: str,
        asked: str,
        columns: Sequence[Column],
        temperature: Any,
        seed: Any,
        tokens: Any,
        key: str | None,
    ) -> AsyncGenerator[Turn, None]:
        sampling = {
            "model": model,
            "temperature": min(max(temperature, 0), 2) if _is_number(temperature) else 0,
            "seed": int(seed) if _is_number(seed) else 0,
            "max_tokens": int(min(max(tokens, 1), MOST_TOKENS)) if _is_number(tokens) else 1,
        }
        return ask(self.client, asked, columns, sampling, key)

    async def _range(self, along: str, dials: Any) -> Updates:
        knob = Dials.model_validate(dials).knob(along)
        low, high = (knob and knob.safe) or (-1.0, 1.0)
        yield {self.low: low, self.high: high}

    async def _load(self, name: Any, dials: Any, read: Seen, key: str | None) -> Updates:
        now, name = Dials.model_validate(dials), _name(name)
        try:
            profile = await self.client.profile(name, key)
        except Trouble as trouble:
            if trouble.status == 404:  # so the name is free again
                yield self._kept(_without(read, name), name)
            raise
        setting = in_numbers(profile["knobs"], read_told(await self.client.knobs(key)))
        now = now.model_copy(update={now.side: setting})
        yield {self.dials: now.model_dump(), **self._kept({**read, name: profile["etag"]}, name)}

    async def _save(self, name: Any, dials: Any, read: Seen, key: str | None) -> Updates:
        now, name = Dials.model_validate(dials), _name(name)
        with _of_the_version_seen(name):
            etag = await self.client.save(name, now.setting(now.side), read.get(name), key)
        yield {**self._kept({**read, name: etag}, name), self.status: say(f"Saved as '{name}'.")}

    async def _delete(self, name: Any, _: Any, read: Seen, key: str | None) -> Updates:
        name = _name(name)
        with _of_the_version_seen(name):
            await self.client.delete(name, read.get(name), key)
        yield {**self._kept(_without(read, name), ""), self.status: say(f"Deleted '{name}'.")}

    def _kept(self, read: Seen, name: str) -> Update:
        """The profiles that there are, and the one that is chosen."""
        names = sorted(read)
        chosen = name if name in read else None
        return {
            self.read: read,
            self.saved: gr.Radio(choices=names, value=chosen, visible=bool(names)),
            self.name: name,
        }

    async def _link(self, name: Any, dials: Any, key: str | None) -> Updates:
        """To the profile, if the knobs are as it has them; else to the knobs."""
        now = Dials.model_validate(dials)
        query = link(setting := now.setting(now.side))
        if isinstance(name, str) and name:
            with suppress(AlignvecError):
                profile = await self.client.profile(name, key)
                told = read_told(await self.client.knobs(key))
                if in_numbers(profile["knobs"], told) == setting:
                    query = "?" + urlencode({"profile": name})
        yield {self.link: gr.Textbox(query, visible=True)}


def _asked(question: Any) -> str:
    return question.strip()[:LONGEST] if isinstance(question, str) else ""


def _name(name: Any) -> str:
    if not isinstance(name, str) or not name.strip():
        raise AlignvecError("Give the profile a name.")
    return name.strip()


def _without(read: Seen, name: str) -> Seen:
    return {other: etag for other, etag in read.items() if other != name}


@contextmanager
def _of_the_version_seen(name: str) -> Iterator[None]:
    """Nobody changes what they have not looked at."""
    try:
        yield
    except Trouble as trouble:
        if trouble.status in (412, 428):
            raise AlignvecError(
                f"There is another '{name}' than you have seen: load it first, or take another "
                "name."
            ) from trouble
        raise


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
