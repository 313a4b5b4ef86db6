"""What the records of a domain should be like, as far as a spectrum or the other records tell."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from alignvec.data.quality.language import common_language
from alignvec.data.records import LEVELS, Record
from alignvec.data.spectrum import SHIPPED, Spectrum, read_spectrum
from alignvec.data.words import ends_sentence
from alignvec.errors import AlignvecError

_COMMON_SHARE = 0.9  # a field that so many records have is one that all should have
_RARE_SHARE = 0.01  # a domain of fewer records is a slip
_USUAL_SHARE = 0.5
KNOWN_LEVELS = (LEVELS, ("unsafe", "safe"), ("rejected", "chosen"))
_SAMPLE = 200  # records that tell the language of a domain


@dataclass(frozen=True)
class Expected:
    """Of one domain.

    Attributes:
        levels: from low to high.
        spectrum: if one is known.
        language: the spectrum's, else the one that the records are in; None if there is none.
        fields: `topic` and `persona`, where records usually have them.
        unusable: why no record of the domain can be used, if so.
    """

    levels: tuple[str, ...]
    spectrum: Spectrum | None = None
    language: str | None = "en"
    fields: tuple[str, ...] = ()
    unusable: str = ""

    @property
    def declining(self) -> list[str]:
        """The levels whose responses refuse."""
        known = self.spectrum.levels if self.spectrum else []
        return [level.name for level in known if level.declines and level.name in self.levels]


def expected_of(
    records: Sequence[Record], spectra: Sequence[Spectrum] = (), levels: Sequence[str] = ()
) -> dict[str, Expected]:
    """What is expected in each domain of the records.

    A domain's spectrum is the one given for it, else the shipped one, if the domain has its levels
    and its language. Without `levels` they are the spectrum's, else see `likely_levels`.

    Raises:
        AlignvecError: a spectrum is given for a domain that there is not, or no record has levels.
    """
    given = {spectrum.domain: spectrum for spectrum in spectra}
    shapes: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        shapes[record.domain].append(record)
    if absent := sorted(given.keys() - shapes.keys()):
        raise AlignvecError(
            f"the spectrum is of domain '{absent[0]}'; the domains of the data: "
            f"{', '.join(sorted(shapes))}"
        )
    fields = tuple(
        name
        for name in ("topic", "persona")
        if sum(bool(getattr(record, name)) for record in records) >= _COMMON_SHARE * len(records)
    )
    expected = {}
    for domain, group in shapes.items():
        texts = (" ".join((one.query, *one.levels.values())) for one in group[:_SAMPLE])
        language = common_language(texts)
        spectrum = given.get(domain) or _shipped(domain, levels, group, language)
        names = levels or (spectrum.level_names if spectrum else likely_levels(group))
        unusable = "" if names else "there is no response"
        if not spectrum and len(group) < _RARE_SHARE * len(records):
            unusable = f"domain '{domain}' hardly comes in the data"
        if spectrum:
            language = spectrum.language
        expected[domain] = Expected(tuple(names), spectrum, language, fields, unusable)
    if not any(one.levels for one in expected.values()):
        raise AlignvecError("the records have no responses")
    return expected


def likely_levels(records: Sequence[Record]) -> tuple[str, ...]:
    """The fields that are responses, of all that hold text: where they came from, who wrote them
    and the like are none.

    Levels that are known by name, else fields that most records have, that mostly end as a
    sentence does, and that say something new each time; all that most records have, if that leaves
    none.
    """
    counts = Counter(name for record in records for name in record.levels)
    usual = [name for name in counts if counts[name] >= _USUAL_SHARE * len(records)]
    for known in KNOWN_LEVELS:
        if set(known) <= set(usual):
            return known
    return tuple(name for name in usual if _reads_as_response(name, records)) or tuple(usual)


def _reads_as_response(name: str, records: Iterable[Record]) -> bool:
    found = [(one.levels[name], one.query) for one in records if one.levels.get(name, "").strip()]
    texts = {text for text, query in found if text != query and ends_sentence(text)}
    return name != "prompt" and len(texts) >= _USUAL_SHARE * len(found)


def _shipped(
    domain: str, levels: Sequence[str], records: Sequence[Record], language: str | None
) -> Spectrum | None:
    if domain not in SHIPPED:
        return None
    spectrum = read_spectrum(domain)
    wanted = set(levels or spectrum.level_names)
    fits = wanted <= set(spectrum.level_names) and any(wanted <= set(one.levels) for one in records)
    return spectrum if fits and language in (None, spectrum.language) else None
