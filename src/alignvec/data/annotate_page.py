"""The web page on which people say which level a response is.

A name, then one response after another. Nothing that the page is sent tells a level or a record:
an item is a place in the annotator's own order. An answer is on the disk before the next response
is shown. Text of the data is shown as text, never as HTML or Markdown.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from html import escape
from typing import Any

from alignvec.data.annotations import Annotations, Answer, annotator_name
from alignvec.errors import AlignvecError

_KEYS = 9  # levels beyond these have no key

_SCRIPT = """<script>
const keys = {Backspace: "back", ArrowLeft: "back", ArrowRight: "skip"};
document.addEventListener("keydown", event => {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches("input, textarea")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (event.key === "n") {
    const note = document.querySelector("#note textarea");
    if (note) { note.focus(); event.preventDefault(); }
    return;
  }
  const id = /^[1-9]$/.test(event.key) ? "level-" + event.key : keys[event.key];
  const button = id && document.getElementById(id);
  if (button) { button.click(); event.preventDefault(); }
});
document.addEventListener("click", event => {  // the second half of a double click is no answer
  if (event.detail > 1 && event.target.closest(".level")) event.stopImmediatePropagation();
}, true);
</script>"""

_STYLE = """
.gradio-container { max-width: 46rem !important; margin: auto; }
footer { display: none !important; }
"""


@dataclass(frozen=True)
class _Place:
    """Where an annotator is: `at` counts through `order`; behind the last item is the end."""

    annotator: str
    order: Sequence[int]
    at: int


def build_page(annotations: Annotations, about: Mapping[str, str]) -> Any:
    """The page as a Gradio app.

    Args:
        about: of levels, what a response of it does; may be empty.
    """
    import gradio as gr

    levels = annotations.levels
    with gr.Blocks(title="Which level is it?", analytics_enabled=False) as page:
        place = gr.State()
        with gr.Column() as entrance:
            gr.HTML(_welcome(len(annotations.items)))
            name = gr.Textbox(label="Your name", max_lines=1, autofocus=True, elem_id="name")
            enter = gr.Button("Start", variant="primary", elem_id="start")
        progress = gr.HTML(visible=False, elem_id="progress")
        with gr.Column(visible=False) as question:
            text = gr.HTML(elem_id="text")
            with gr.Row(elem_id="levels"):
                choices = [
                    gr.Button(_label(number, level), elem_id=f"level-{number}", elem_classes="level")
                    for number, level in enumerate(levels, start=1)
                ]
            note = gr.Textbox(label="Note on accuracy (optional)", lines=1, elem_id="note")
        with gr.Row(visible=False) as steps:
            back = gr.Button("← Back", elem_id="back")
            skip = gr.Button("Skip →", elem_id="skip")
        if about:
            with gr.Accordion("What the levels mean", open=False):
                gr.HTML("".join(f"<p><b>{escape(l)}</b> {escape(about[l])}</p>" for l in levels))

    return page
