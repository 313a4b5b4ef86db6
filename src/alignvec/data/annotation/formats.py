"""Items for, and answers from, other tools for annotation: Label Studio and Argilla.

What goes out is as blind as our own page: texts and a number, in random order. Label Studio gets
its tasks and, beside them, a labelling configuration; Argilla its records and settings. What comes
back are their own JSON exports.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from pydantic import BaseModel, ConfigDict, field_validator

from alignvec.data.annotation.store import Annotations, Answer, annotator_name
from alignvec.errors import AlignvecError
from alignvec.files import check_free, read_json, validated, write_json, write_text

FORMATS = ("label-studio", "argilla")
_QUESTION = "Which level is the response?"
_ACCURACY = "Is anything in the response wrong?"


def export_items(
    annotations: Annotations,
    form: str,
    path: Path,
    about: Mapping[str, str],
    overwrite: bool = False,
) -> list[Path]:
    """Write the items as a tool imports them.

    Args:
        form: one of `FORMATS`.
        about: of levels, what a response of it does; may be empty.

    Returns:
        The files.
    """
    check_free(path, overwrite)
    texts = {
        number: {"query": item.query, "response": item.response}
        for number, item in annotations.items.items()
    }
    if form == "label-studio":
        config = path.with_name(f"{path.stem}-config.xml")
        check_free(config, overwrite)
        tasks = [{"data": {"item": number, **of}} for number, of in texts.items()]
        write_text(config, _label_studio_config(annotations.levels, about), overwrite)
        write_json(path, tasks, overwrite)
        return [path, config]
    settings = path.with_name(f"{path.stem}-settings.json")
    check_free(settings, overwrite)
    items = [{"id": str(number), "fields": of} for number, of in texts.items()]
    write_json(settings, _argilla_settings(annotations.levels, about), overwrite)
    write_json(path, items, overwrite)
    return [path, settings]


def import_answers(annotations: Annotations, form: str, path: Path) -> list[Answer]:
    """The answers in what a tool exported, all of them checked; they are not added yet.

    Raises:
        AlignvecError: the file is not of this form, has an item or a level that is not ours, or
            two answers of one annotator to an item.
    """
    found = read_json(path)
    if not isinstance(found, list):
        raise AlignvecError(f"{path} is no export of {form}: it holds no list")
    read = _from_label_studio if form == "label-studio" else _from_argilla
    answers: dict[tuple[int, str], Answer] = {}
    for number, entry in enumerate(found, start=1):
        where = f"{path.name}, entry {number}"
        for answer, response in read(entry, where):
            item = annotations.items.get(answer.item)
            if item is None or item.response != response:
                raise AlignvecError(f"{where}: this is no item of {annotations.path}")
            if answer.level not in annotations.levels:
                raise AlignvecError(f"{where}: '{answer.level}' is no level here")
            before = answers.setdefault((answer.item, answer.annotator), answer)
            if before.level != answer.level:
                raise AlignvecError(
                    f"{where}: '{answer.annotator}' says '{before.level}' and '{answer.level}' of "
                    f"item {answer.item}; delete one of the two"
                )
    return [*answers.values()]


def _label_studio_config(levels: list[str], about: Mapping[str, str]) -> str:
    view = ElementTree.Element("View")
    for name in ("query", "response"):
        ElementTree.SubElement(view, "Header", value=name.capitalize())
        ElementTree.SubElement(view, "Text", name=name, value=f"${name}", valueType="text")
    ElementTree.SubElement(view, "Header", value=_QUESTION)
    choices = ElementTree.SubElement(
        view, "Choices", name="level", toName="response", choice="single", required="true"
    )
    for key, level in enumerate(levels, start=1):
        choice = ElementTree.SubElement(choices, "Choice", value=level)
        if key < 10:
            choice.set("hotkey", str(key))
        if level in about:
            choice.set("hint", about[level])
    ElementTree.SubElement(
        view, "TextArea", name="note", toName="response", placeholder=_ACCURACY, maxSubmissions="1"
    )
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode") + "\n"


def _argilla_settings(levels: list[str], about: Mapping[str, str]) -> dict[str, Any]:
    options = [{"value": level, "text": level} for level in levels]
    guidelines = "\n\n".join(f"{level}: {about[level]}" for level in levels if level in about)
    return {
        "guidelines": guidelines or None,
        "fields": [{"name": name, "settings": {"type": "text"}} for name in ("query", "response")],
        "questions": [
            {
                "name": "level",
                "title": _QUESTION,
                "required": True,
                "settings": {"type": "label_selection", "options": options},
            },
            {"name": "note", "title": _ACCURACY, "required": False, "settings": {"type": "text"}},
        ],
    }


class _Data(BaseModel):
    item: int
    response: str


class _User(BaseModel):
    """Label Studio writes an annotator with names and address, or by number alone."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    email: str | None = None
    id: str | None = None


class _Value(BaseModel):
    choices: list[str] = []
    text: list[str] | str = []


class _Result(BaseModel):
    from_name: str = ""  # of a relation: it is between two others
    value: _Value = _Value()


class _Annotation(BaseModel):
    completed_by: _User
    result: list[_Result]
    was_cancelled: bool | None = None  # skipped

    @field_validator("completed_by", mode="before")
    @classmethod
    def _by_number(cls, by: Any) -> Any:
        return {"id": by} if isinstance(by, int | str) else by or {}


class _Task(BaseModel):
    """Of Label Studio's JSON export."""

    data: _Data
    annotations: list[_Annotation]


def _from_label_studio(entry: Any, where: str) -> Iterator[tuple[Answer, str]]:
    task = validated(_Task, entry, where)
    for annotation in task.annotations:
        said = {result.from_name: result.value for result in annotation.result}
        level, note = said.get("level", _Value()).choices, said.get("note", _Value()).text
        if annotation.was_cancelled or not level:
            continue
        by = annotation.completed_by
        answer = Answer(
            item=task.data.item,
            annotator=_annotator(by.email or by.id, "completed_by", where),
            level=level[0],
            note=note if isinstance(note, str) else "\n".join(note),
        )
        yield answer, task.data.response


def _annotator(name: str | None, field: str, where: str) -> str:
    if not (name or "").strip():
        raise AlignvecError(f"{where}: '{field}' is empty: an answer needs an annotator")
    return annotator_name(str(name), where)


class _Fields(BaseModel):
    response: str


class _Response(BaseModel):
    model_config = ConfigDict(coerce_numbers_to_str=True)

    value: str | None = None  # of a draft
    user_id: str | None = None
    status: str | None = None  # submitted, draft or discarded


class _Record(BaseModel):
    """Of Argilla's `dataset.records.to_json`."""

    id: int
    fields: _Fields
    responses: dict[str, list[_Response] | None] | None = None


def _from_argilla(entry: Any, where: str) -> Iterator[tuple[Answer, str]]:
    record = validated(_Record, entry, where)
    responses = record.responses or {}
    notes = {note.user_id: note.value for note in responses.get("note") or []}
    for said in responses.get("level") or []:
        if said.status in (None, "submitted") and said.value:
            answer = Answer(
                item=record.id,
                annotator=_annotator(said.user_id, "user_id", where),
                level=said.value,
                note=notes.get(said.user_id) or "",
            )
            yield answer, record.fields.response
