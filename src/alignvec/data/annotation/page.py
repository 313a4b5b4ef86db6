"""The web page on which people say which level a response is.

A name, then one response after another. Nothing that the page is sent tells a level or a record:
an item is a place in the annotator's own order. An answer is on the disk before the next response
is shown. What comes from the data is shown as text, never as HTML or Markdown.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from html import escape
from typing import Any

import gradio as gr

from alignvec.data.annotation.store import Annotations, Answer, Item, annotator_name
from alignvec.errors import AlignvecError

_SCRIPT = """<script>
const keys = {Backspace: "back", ArrowLeft: "back", ArrowRight: "skip"};
document.addEventListener("keydown", event => {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches("input, textarea")) {
    const ends = event.key === "Escape" || (event.key === "Enter" && !event.shiftKey);
    if (ends && !event.isComposing && event.target.closest("#note")) event.target.blur();
    return;
  }
  const note = document.querySelector("#note textarea");
  const button = document.getElementById(keys[event.key] ?? "level-" + event.key);
  if (event.key === "n" && note) note.focus(); else if (button) button.click(); else return;
  event.preventDefault();
});
document.addEventListener("click", event => {  // the second half of a double click is no answer
  if (event.detail > 1 && event.target.closest(".level")) event.stopImmediatePropagation();
}, true);
</script>"""

_STYLE = """
.gradio-container { max-width: 44rem !important; width: 100%; margin: auto; }
.gradio-container .fillable, .gradio-container main { padding: .5rem !important; }
.gradio-container .html-container { padding: 0; }
.quiet, #text h2, #keys { opacity: .7; }
.where { display: flex; justify-content: space-between; gap: 1rem; }
progress { appearance: none; display: block; width: 100%; height: 6px; margin-top: .5rem; }
progress::-webkit-progress-bar { background: var(--border-color-primary); border-radius: 3px; }
progress::-webkit-progress-value { background: var(--primary-500); border-radius: 3px; }
progress::-moz-progress-bar { background: var(--primary-500); }
#text h2 { font-size: .9rem; margin: 0 0 .3rem; }
#text p { font-size: 1.1rem; line-height: 1.6; white-space: pre-wrap; overflow-wrap: anywhere;
  padding: .7rem 1rem; margin: 0 0 1.2rem; border: 1px solid var(--border-color-primary);
  border-radius: .5rem; }
#text p:last-child { border-left: 4px solid var(--primary-500); margin: 0; }
#levels { counter-reset: key; gap: .7rem; }
.level::before, #keys kbd { font: .8rem var(--font-mono); padding: 0 .4em; margin-right: .5em;
  border: 1px solid currentColor; border-radius: .25em; }
.level::before { counter-increment: key; content: counter(key); opacity: .7; }
.level:nth-child(n + 10)::before { content: none; }
#keys { font-size: .85rem; text-align: center; }
@media (max-width: 30rem) { #levels { flex-direction: column; align-items: stretch; } }
@media (pointer: coarse) { .level::before, #keys { display: none !important; } }
"""


@dataclass(frozen=True)
class _Place:
    """Where an annotator is: `at` counts through `order`; behind the last item is the end."""

    annotator: str
    order: Sequence[int]
    at: int


@contextmanager
def serving(
    annotations: Annotations, about: Mapping[str, str], host: str, port: int
) -> Iterator[str]:
    """Serve the page as long as this is entered; yields its address.

    Args:
        about: of levels, what a response of it does; may be empty.

    Raises:
        AlignvecError: the port is taken, or the host is not this machine's.
    """
    _check_free(host, port)
    page = _page(annotations, about)
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        run_history=False,  # several people may sit at one browser
        footer_links=[],
        theme=gr.themes.Default(primary_hue="blue", font=["system-ui", "sans-serif"]),
        css=_STYLE,
        head=_SCRIPT,
    )
    try:
        yield address
    finally:
        page.close(verbose=False)


def _check_free(host: str, port: int) -> None:
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except OSError as error:
        raise AlignvecError(
            f"cannot serve on {host}, port {port}: {error.strerror}; choose others with --host "
            "and --port"
        ) from error


def _page(annotations: Annotations, about: Mapping[str, str]) -> Any:
    levels = annotations.levels
    with gr.Blocks(title="Which level is it?", analytics_enabled=False) as page:
        place = gr.State()
        with gr.Column() as entrance:
            gr.HTML(_welcome(len(annotations.items)))
            name = gr.Textbox(label="Your name", max_lines=1, autofocus=True, elem_id="name")
            start = gr.Button("Start", variant="primary", elem_id="start")
        progress = gr.HTML(visible=False, elem_id="progress")
        with gr.Column(visible=False) as question:
            text = gr.HTML(elem_id="text")
            note = gr.Textbox(
                label="Is anything in the response wrong? (optional; kept with the level)",
                max_lines=4,
                elem_id="note",
            )
            with gr.Row(elem_id="levels"):
                buttons = [
                    gr.Button(level, elem_id=f"level-{key}", elem_classes="level", min_width=96)
                    for key, level in enumerate(levels, start=1)
                ]
        with gr.Row(visible=False) as steps:
            back = gr.Button("Back", size="sm", min_width=96, elem_id="back")
            skip = gr.Button("Skip", size="sm", min_width=96, elem_id="skip")
        keys = gr.HTML(_keys(len(levels)), visible=False, elem_id="keys")
        if about:
            with gr.Accordion("What the levels mean", open=False, elem_id="about"):
                gr.HTML(_meanings(levels, about))

    def show(now: _Place) -> dict[Any, Any]:
        given = {answer.item: answer for answer in annotations.answers(now.annotator)}
        item = annotations.items[now.order[now.at]] if now.at < len(now.order) else None
        answer = given.get(now.order[now.at]) if item else None
        onward = "Next" if answer else "Skip" if item else "Answer the rest"
        return {
            place: now,
            entrance: gr.Column(visible=False),
            progress: gr.HTML(_progress(now, len(given)), visible=True),
            question: gr.Column(visible=item is not None),
            text: _texts(item) if item else "",
            note: answer.note if answer else "",
            steps: gr.Row(visible=True),
            keys: gr.HTML(visible=item is not None),
            back: gr.Button(interactive=now.at > 0),
            skip: gr.Button(onward, visible=item is not None or len(given) < len(now.order)),
        } | {
            button: gr.Button(
                variant="primary" if answer and answer.level == level else "secondary"
            )
            for button, level in zip(buttons, levels, strict=True)
        }

    def show_open(now: _Place, start: int) -> dict[Any, Any]:
        """The first item from `start` on that has no answer yet."""
        given = {answer.item for answer in annotations.answers(now.annotator)}
        still = (at for at in range(start, len(now.order)) if now.order[at] not in given)
        return show(replace(now, at=next(still, len(now.order))))

    def enter(typed: str) -> dict[Any, Any]:
        annotator = annotator_name(typed)
        return show_open(_Place(annotator, annotations.order(annotator), 0), 0)

    def step(now: _Place | None, noted: str, event: gr.EventData) -> dict[Any, Any]:
        pressed = event.target.elem_id
        if now is None:  # the server was started again under an open page
            raise AlignvecError("the server was started again; reload the page to go on")
        if pressed == "back":
            return show(replace(now, at=max(now.at - 1, 0)))
        if now.at == len(now.order):
            return show_open(now, 0)
        if pressed == "skip":
            return show(replace(now, at=now.at + 1))
        level = levels[int(pressed.removeprefix("level-")) - 1]
        item = now.order[now.at]
        said = Answer(item=item, annotator=now.annotator, level=level, note=noted.strip())
        annotations.add([said])
        return show_open(now, now.at + 1)

    outputs = [place, entrance, progress, question, text, note, steps, keys, back, skip, *buttons]
    quietly: Any = {"show_progress": "hidden", "api_visibility": "private"}
    with page:
        entered = gr.on(
            [start.click, name.submit], _showing_errors(enter), name, outputs, **quietly
        )
        presses = [button.click for button in (*buttons, back, skip)]
        stepped = gr.on(
            presses, _showing_errors(step), [place, note], outputs, **quietly
        )  # one at a time
        for shown in (entered, stepped):
            shown.then(None, js="() => window.scrollTo(0, 0)")
    return page


def _showing_errors(act: Callable[..., dict[Any, Any]]) -> Callable[..., dict[Any, Any]]:
    """What goes wrong is shown on the page."""

    @wraps(act)
    def told(*given: Any) -> dict[Any, Any]:
        try:
            return act(*given)
        except AlignvecError as error:
            raise gr.Error(escape(str(error)), print_exception=False) from error

    return told


def _welcome(items: int) -> str:
    return (
        "<h1>Which level is it?</h1>"
        f"<p>You will read {items} responses, one at a time and in random order, and say of each "
        "which level it is. Every answer is kept at once: stop when you like, and come back under "
        "the same name.</p>"
    )


def _progress(now: _Place, given: int) -> str:
    total = len(now.order)
    where = f"{now.at + 1} of {total}" if now.at < total else "The end"
    end = f"<h1>Thank you</h1><p>{given} of {total} are answered. Close the page when you like.</p>"
    return (
        f'<div class="where"><b id="where">{where}</b>'
        f'<span class="quiet">{given} answered as {escape(now.annotator)}</span></div>'
        f'<progress value="{given}" max="{total}"></progress>{end if now.at == total else ""}'
    )


def _texts(item: Item) -> str:
    return "".join(
        f'<h2>{title}</h2><p dir="auto">{escape(content)}</p>'
        for title, content in (("Query", item.query), ("Response", item.response))
    )


def _keys(levels: int) -> str:
    return (
        f"<kbd>1</kbd>to <kbd>{min(levels, 9)}</kbd>level &ensp; <kbd>←</kbd>back &ensp; "
        "<kbd>→</kbd>skip &ensp; <kbd>N</kbd>note &ensp; <kbd>Enter</kbd>leave the note"
    )


def _meanings(levels: Sequence[str], about: Mapping[str, str]) -> str:
    told = [(level, about[level]) for level in levels if level in about]
    return "".join(f"<p><b>{escape(level)}</b>: {escape(text)}</p>" for level, text in told)
