"""What the page consists of, from top to bottom; what happens on it is in page.py."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from pydantic import BaseModel

from alignvec.serve.playground.dials import Dials
from alignvec.serve.playground.talk import Talk

MOST_TOKENS = 1024  # of an answer
LONGEST = 20_000  # characters of a question


class Parts:
    """Gradio's components; made inside its Blocks."""

    def __init__(self) -> None:
        self.read = gr.State({})  # profile -> the ETag of the version that was seen; None: none was
        self.query = gr.Textbox(visible="hidden", container=False)
        self.lost = gr.Textbox(visible="hidden", container=False)  # what nothing answered
        self.knob = gr.Textbox(visible="hidden", container=False)  # that is swept along
        self.heading = gr.HTML(heading(""), elem_id="heading")
        with gr.Row(elem_id="trouble"):
            self.status = gr.HTML("", elem_id="status")
            self.retry = gr.Button("Try again", visible=False, size="sm", elem_id="retry")
        self.key = gr.Textbox(
            label="API key",
            info="Kept in this page alone, until it is closed. Enter goes on.",
            type="password",
            visible=False,
            elem_id="key",
            html_attributes=gr.InputHTMLAttributes(autocomplete="off"),
        )
        with gr.Row(elem_id="desk", equal_height=False):
            with gr.Column(elem_id="side", scale=0, min_width=300):
                self._side()
            with gr.Column(elem_id="main", scale=1, min_width=300), gr.Tabs():
                with gr.Tab("Chat", id="chat"):
                    self._chat()
                with gr.Tab("Sweep", id="sweep"):
                    self._sweep()

    def _side(self) -> None:
        self.dials = _drawn("dials", Dials())
        with gr.Accordion("Profiles", open=False, elem_id="profiles"):
            self.saved = gr.Radio(
                [], value=None, label="Saved", info="Choose one to load it.", visible=False,
                elem_id="saved",
            )  # fmt: skip
            self.name = gr.Textbox(label="Name", max_lines=1, max_length=64, elem_id="name")
            with gr.Row(elem_classes="buttons"):
                self.load = _small("Load", elem_id="load")
                self.save = _small("Save", elem_id="save")
                self.delete = _small("Delete", elem_id="delete")
            self.share = _small("Copy a link to these knobs", elem_id="share")
            self.link = gr.Textbox(label="Link", visible=False, max_lines=1, elem_id="link")
        with gr.Accordion("Sampling", open=False, elem_id="sampling"):
            self.temperature = gr.Slider(
                0, 2, 0.7, step=0.05, label="Temperature", info="0: greedy"
            )
            self.seed = gr.Number(0, label="Seed", precision=0, info="The same in every column.")
            self.tokens = gr.Slider(
                8, MOST_TOKENS, 200, step=8, label="Longest answer, in tokens", elem_id="tokens"
            )

    def _chat(self) -> None:
        self.talk = _drawn("talk", Talk(), "Turn the knobs on one side, ask, and read both.")
        with gr.Column(elem_classes="composer"):
            self.question = _question("Ask something", "question")
            with gr.Row(elem_classes="buttons"):
                self.compare = gr.Checkbox(
                    True, label="Two columns", container=False, min_width=110, elem_id="compare"
                )
                self.clear = _small("New chat", elem_id="clear")
                self.stop = _small("Stop", elem_classes="stop", elem_id="stop")
                self.send = _small("Send", variant="primary", elem_classes="send", elem_id="send")

    def _sweep(self) -> None:
        self.swept = _drawn(
            "talk", Talk(), "One question along one knob; the others as on the left."
        )
        with gr.Column(elem_classes="composer"):
            self.sweep_question = _question("One question, five strengths", "sweep-question")
            with gr.Row(elem_classes="buttons"):
                self.along = gr.Radio([], value=None, label="Knob", elem_id="along")
                self.low = gr.Number(-1, label="From", min_width=70, elem_id="low")
                self.high = gr.Number(1, label="To", min_width=70, elem_id="high")
                self.sweep_stop = _small("Stop", elem_classes="stop", elem_id="sweep-stop")
                self.sweep = _small(
                    "Sweep", variant="primary", elem_classes="send", elem_id="sweep"
                )


def _drawn(name: str, value: BaseModel, hint: str = "") -> Any:
    """A part that `name`.js draws from a model."""
    return gr.HTML(
        value.model_dump(),
        html_template=f'<p class="hint">{hint}</p><div class="{name}"></div>',
        js_on_load=Path(__file__).with_name(f"{name}.js").read_text("utf-8"),
        apply_default_css=False,
        elem_classes=f"part-{name}",
    )


def _small(text: str, **options: Any) -> Any:
    return gr.Button(text, size="sm", min_width=80, **options)


def _question(label: str, elem_id: str) -> Any:
    """One line that grows: Enter sends, Shift and Enter begins another."""
    return gr.Textbox(
        label=label,
        placeholder="Enter sends",
        lines=1,
        max_lines=8,
        max_length=LONGEST,
        elem_id=elem_id,
    )


def heading(model: str) -> str:
    """The head of the page, with the model's name."""
    return f"<h1>alignvec</h1><p>{escape(model)}</p>"


def alert(text: str) -> str:
    """What went wrong, in one line."""
    return f'<p role="alert">{escape(text)}</p>' if text else ""


def say(text: str) -> str:
    """What was done."""
    return f'<p role="status">{escape(text)}</p>'
