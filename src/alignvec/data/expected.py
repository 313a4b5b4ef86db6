"""What the records of a domain should be like: their levels, and the spectrum where it is known."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from alignvec.data.records import Record
from alignvec.data.spectrum import SHIPPED, Spectrum, read_spectrum
from alignvec.errors import AlignvecError


@dataclass(frozen=True)
class Expected:
    """Of one domain. Attributes: levels: from low to high."""

    levels: tuple[str, ...]
    spectrum: Spectrum | None = None

    @property
    def language(self) -> str:
        return self.spectrum.language if self.spectrum else "en"

    @property
    def declining(self) -> list[str]:
        """The levels whose responses refuse."""
        declines = (
            {level.name for level in self.spectrum.levels if level.declines}
            if (self.spectrum)
            else set[str]()
        )
        return [level for level in self.levels if level in declines]


def expected_of(
    records: Iterable[Record], spectra: Sequence[Spectrum] = (), levels: Sequence[str] = ()
) -> dict[str, Expected]:
    """What is expected in each domain of the records.

    A domain's spectrum is the one given for it, else the shipped one, if the domain has its levels.
    Without `levels` they are the spectrum's, else those that most records of the domain have.

    Raises:
        AlignvecError: a spectrum is given for a domain that there is not.
    """
    shapes: dict[str, Counter[tuple[str, ...]]] = defaultdict(Counter)
    for record in records:
        shapes[record.domain][tuple(record.levels)] += 1
    given = {spectrum.domain: spectrum for spectrum in spectra}
    if absent := sorted(given.keys() - shapes.keys()):
        raise AlignvecError(
            f"the spectrum is of domain '{absent[0]}'; the domains of the data: "
            f"{', '.join(sorted(shapes))}"
        )
    expected = {}
    for domain, counts in shapes.items():
        spectrum = given.get(domain)
        if spectrum is None and domain in SHIPPED:
            shipped = read_spectrum(domain)
            wanted = set(levels or shipped.level_names)
            fits = wanted <= set(shipped.level_names) and any(wanted <= set(one) for one in counts)
            spectrum = shipped if fits else None
        names = levels or (spectrum.level_names if spectrum else counts.most_common(1)[0][0])
        expected[domain] = Expected(tuple(names), spectrum)
    return expected
