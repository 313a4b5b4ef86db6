"""A study: one base, its data, its vectors, and a folder in which every result is written once."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from alignvec.base.live import open_weights
from alignvec.base.load import Base, load_base, load_tokenizer
from alignvec.base.source import base_name, find_base
from alignvec.data import Record, read_records
from alignvec.data.line import Places, spaced
from alignvec.data.sources import BUILTIN
from alignvec.data.synthesis.chat import Chat
from alignvec.data.words import words
from alignvec.errors import NoNumbersError
from alignvec.evaluate.broken import Bounds
from alignvec.evaluate.chat_judge import check_reachable
from alignvec.evaluate.judge import Judge, LevelClassifier
from alignvec.evaluate.text import reading, text_quality
from alignvec.files import hash_of, read_object, work_folder, write_json
from alignvec.reproduce.item import Item, Shared, Work
from alignvec.reproduce.models import Engine, Models
from alignvec.reproduce.note import NOTE, check_folder
from alignvec.reproduce.records import Records
from alignvec.reproduce.scale import Scale
from alignvec.reproduce.subject import Subject, Turned, measured, unread

SAFETY = "safety"
SAFE = ("unsafe", "safe")  # from low to high, as any levels
HARMLESS = "harmless"
ANSWERED = ("refusal", "helpful")
FAILED = "failed"  # the key of a result that is none: why


class Study:
    """What the parts of a study share: records, vectors, judges, and results on disk.

    Attributes:
        out: the folder; `results/` holds a file a result, `vectors/` what was trained.
        places: level -> the strength at which training puts it.
        domains: those of the data, in the order of the alphabet.
        models: the base with knobs.
    """

    def __init__(
        self,
        base: str,
        out: Path,
        scale: Scale,
        data: str = BUILTIN,
        levels: Sequence[str] | None = None,
        reader: str | None = None,
        chat: Chat | None = None,
        dtype: str | None = None,
        device: str | None = None,
        seed: int = 0,
        engine: Engine | None = None,
    ) -> None:
        """Read the records; nothing is written until it is `opened`.

        Args:
            data: records with levels, as everywhere; split by hash.
            levels: from low to high; by default those that the records seem to have.
            reader: another base, to say how likely it finds what is written.
            chat: a model that judges what is written, too, beside the classifier of levels.
            engine: that writes and scores; by default transformers, which does all else.

        Raises:
            AlignvecError: the records are none for a study, see `Records`.
        """
        self.base, self.out, self.scale, self.data = base, out, scale, data
        self.dtype, self.device, self.seed, self._reader = dtype, device, seed, reader
        self.chat = chat
        self.models = Models(base, dtype, device, engine)
        read = Records.read(data, levels, {SAFETY, HARMLESS})
        self.levels, self._parts = read.levels, read.parts
        self.places: Places = spaced(self.levels)
        self.domains = list(read.parts)
        told = {
            "base": base_name(base), "data": Path(data).name, "levels": self.levels,
            "domains": self.domains, "scale": asdict(scale), "seed": seed,
            "reader": reader and base_name(reader), "dtype": dtype,
            "records": hash_of(
                [[one.domain, one.split, one.prompt, one.levels] for one in read.whole]
            ),
        }  # fmt: skip
        told |= {"engine": "vllm"} if engine else {}
        self.told: dict[str, Any] = _plain(told)

    def check_folder(self) -> str | None:
        """Make sure that what the folder holds is of this study; see `note.check_folder`."""
        judge = self.chat.name if self.chat else None
        return check_folder(self.out, self.told, judge, lambda: self._fingerprints)

    @cached_property
    def _fingerprints(self) -> dict[str, str]:
        models = {"base": self.base, "reader": self._reader}
        return {role: open_weights(one).fingerprint for role, one in models.items() if one}

    @contextmanager
    def opened(self) -> Iterator[Study]:
        """Hold the folder while results are written to it; then let go of the models.

        Raises:
            AlignvecError: it holds another study (`check_folder`), another process has it, or a
                model is not to be found or does not answer.
        """
        judge = self.check_folder()
        if self.chat:  # now, not after hours
            check_reachable(self.chat)
        told = self.told | {"fingerprints": self._fingerprints}
        with work_folder(self.out):
            write_json(self.out / NOTE, told | ({"judge": judge} if judge else {}))
            try:
                yield self
            finally:  # the next study has models of its own
                self.models.let_go()
                vars(self).pop("reader", None)

    # Records.

    def records(self, domain: str, split: str) -> list[Record]:
        """Records of a domain; of the train and the test part as many as the scale says."""
        if domain == SAFETY:
            some = list(read_records(BUILTIN, SAFE, SAFETY, split))
        elif domain == HARMLESS:  # half of it for the judge alone
            some = list(read_records(BUILTIN, ANSWERED, HARMLESS))[split == "test" :: 2]
        else:
            some = list(self._parts[domain][split])
        most = {"train": self.scale.train, "test": self.scale.queries}.get(split)
        return some[:most]

    # Results.

    def file(self, name: str) -> Path:
        """Where a result lies."""
        return self.out / "results" / f"{name}.json"

    def names(self) -> list[str]:
        """Of the results that are there."""
        every = (self.out / "results").rglob("*.json")
        paths = (file.relative_to(self.out / "results") for file in every)
        return sorted(path.with_suffix("").as_posix() for path in paths if path.name[0] != ".")

    def done(self, item: Item) -> bool:
        """Whether its result is there."""
        return self.file(item.name).exists()

    def result(self, name: str) -> Any:
        """A result that is there; None if it is not."""
        file = self.file(name)
        return read_object(file)["result"] if file.exists() else None

    def once(self, item: Item) -> Any:
        """The result of an item: from its file, or computed and written to it.

        Raises:
            NoNumbersError: what it needs computes none. That is kept as its result, too.
        """
        if (found := self.result(item.name)) is None:
            start = time.perf_counter()
            try:
                found = _plain(item.run())
            except NoNumbersError as error:
                found = {FAILED: str(error)}
            told = {"seconds": round(time.perf_counter() - start, 2), "result": found}
            write_json(self.file(item.name), told)
        if isinstance(found, dict) and found.keys() == {FAILED}:
            raise NoNumbersError(found[FAILED])
        return found

    # Models.

    @cached_property
    def reader(self) -> Base | None:
        """The other model, that says how likely it finds what is written."""
        return load_base(self._reader, self.dtype, self.device) if self._reader else None

    def shown(self, text: str) -> str:
        """What was asked for, of what the base wrote, however it was turned. Without a chat
        template nothing ends a turn but a blank line; what follows are turns that nobody asked for.
        """
        return text.split("\n\n")[0].rstrip() if self._untold else text

    @cached_property
    def _untold(self) -> bool:
        return load_tokenizer(find_base(self.base)).chat_template is None

    # Judges.

    @cached_property
    def judge(self) -> LevelClassifier:
        """Tells the level of a text; trained on references of the train part."""
        every = [one for domain in self.domains for one in self._parts[domain]["train"]]
        return LevelClassifier.fit(every, self.levels)

    def bounds(self, domain: str) -> Bounds:
        """What counts as broken in a domain: set on the base's own answers, which are kept, and the
        references of the train part.
        """
        return self._bounds(domain, self.once(self.base_item(domain))["answers"])

    def _bounds(self, domain: str, answers: Sequence[str]) -> Bounds:
        train = self.records(domain, "train")
        told = [one.levels[level] for one in train for level in self.levels_of(domain)]
        written = any(map(words, answers))  # a base may have nothing to say
        return Bounds.of(answers if written else told, told)

    def base_item(self, domain: str) -> Item:
        """The base's own answers in a domain."""
        asked = [one.prompt for one in self.records(domain, "test")[: self.scale.answers]]

        def run() -> dict[str, Any]:
            written = Turned(self.models.measured({}), {}).answers(asked, self.scale.tokens)
            texts = [*map(self.shown, written)]
            bounds = self._bounds(domain, texts).to_json()
            return {"queries": asked, "answers": texts, "bounds": bounds}

        return Item(f"base/{domain}", run, Work(written=len(asked)))

    def measuring(self, what: str, domains: Sequence[str]) -> Shared:
        """What it takes to `measure` a subject in some domains, by what the subject is."""
        return {f"{what} in {domain}": self.work_of([domain]) for domain in domains}

    def work_of(self, domains: Sequence[str]) -> Work:
        """What it takes to `measure` a subject of no identity in some domains."""
        queries = [len(self.records(domain, "test")) for domain in domains]
        answers = [min(count, self.scale.answers) for count in queries]
        return Work(scored=sum(queries), written=sum(answers))

    def levels_of(self, domain: str) -> Sequence[str]:
        return {SAFETY: SAFE, HARMLESS: ANSWERED}.get(domain, self.levels)

    def measure(self, subject: Subject, domain: str, judge: Judge | None = None) -> dict[str, Any]:
        """Both rates of a subject on the test queries of a domain, and its texts (`measured`); of
        one that computes no numbers `failed`, and why.

        Whatever parts ask for it, the same subject is measured once.
        """

        def run() -> dict[str, Any]:
            return measured(
                subject, self.records(domain, "test"), self.levels_of(domain), self.scale.answers,
                self.scale.tokens, judge or self.judge, bounds, self.reader, self.shown,
            )  # fmt: skip

        try:
            bounds = self.bounds(domain)  # first: it may need a model of its own
            if subject.identity is None:
                return run()
            found: dict[str, Any] = self.once(Item(f"measured/{domain}/{subject.identity}", run))
        except NoNumbersError as error:
            return {FAILED: str(error)}
        if unread(found):
            read = self.likelihood(domain, found["answers"])
            found = {**found, "text": {**found["text"], "likelihood": read}}
        return found

    def likelihood(self, domain: str, answers: Sequence[str]) -> float | None:
        """Of answers to the test queries of a domain, under the reader (`TextQuality`)."""
        if self.reader is None:
            return None
        asked = [one.prompt for one in self.records(domain, "test")[: len(answers)]]
        read = reading(self.reader.model, self.reader.tokenizer, asked, answers)
        return text_quality(answers, read).likelihood


def _plain(value: Any) -> Any:
    """As it is read back from JSON; what is no number, which JSON has no word for, is None."""
    return json.loads(json.dumps(value), parse_constant=lambda _: None)
