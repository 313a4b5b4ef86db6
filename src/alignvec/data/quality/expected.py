"""What the records of a domain should be like, as far as a spectrum or the other records tell."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from alignvec.data.records import Record
from alignvec.data.spectrum import SHIPPED, Spectrum, read_spectrum
from alignvec.errors import AlignvecError

_COMMON_SHARE = 0.9  # a field that so many records have is one that all should have
_RARE_SHARE = 0.01  # a domain of fewer records is a slip


@dataclass(frozen=True)
class Expected:
    """Of one domain.

    Attributes:
        levels: from low to high.
        fields: `topic` and `persona`, where records usually have them.
        unusable: why no record of the domain can be used, if so.
    """

    levels: tuple[str, ...]
    spectrum: Spectrum | None = None
    fields: tuple[str, ...] = ()
    unusable: str = ""

    @property
    def language(self) -> str:
        return self.spectrum.language if self.spectrum else "en"

    @property
    def declining(self) -> list[str]:
        """The levels whose responses refuse."""
        known = self.spectrum.levels if self.spectrum else []
        return [level.name for level in known if level.declines and level.name in self.levels]


def expected_of(
    records: Sequence[Record], spectra: Sequence[Spectrum] = (), levels: Sequence[str] = ()
) -> dict[str, Expected]:
    """What is expected in each domain of the records.

    A domain's spectrum is the one given for it, else the shipped one, if the domain has its levels.
    Without `levels` they are the spectrum's, else those that most records of the domain have.

    Raises:
        AlignvecError: a spectrum is given for a domain that there is not, or no record has levels.
    """
    given = {spectrum.domain: spectrum for spectrum in spectra}
    shapes: dict[str, Counter[tuple[str, ...]]] = defaultdict(Counter)
    for record in records:
        shapes[record.domain][tuple(record.levels)] += 1
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
    for domain, counts in shapes.items():
        spectrum = given.get(domain) or _shipped(domain, levels, counts)
        names = levels or (spectrum.level_names if spectrum else counts.most_common(1)[0][0])
        unusable = "" if names else "there is no response"
        if not spectrum and counts.total() < _RARE_SHARE * len(records):
            unusable = f"domain '{domain}' hardly comes in the data"
        expected[domain] = Expected(tuple(names), spectrum, fields, unusable)
    if not any(one.levels for one in expected.values()):
        raise AlignvecError("the records have no responses")
    return expected


def _shipped(
    domain: str, levels: Sequence[str], shapes: Iterable[tuple[str, ...]]
) -> Spectrum | None:
    if domain not in SHIPPED:
        return None
    spectrum = read_spectrum(domain)
    wanted = set(levels or spectrum.level_names)
    fits = wanted <= set(spectrum.level_names) and any(wanted <= set(one) for one in shapes)
    return spectrum if fits else None
