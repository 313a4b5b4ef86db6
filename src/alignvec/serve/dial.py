"""What a request asks of the knobs, as a setting that a model can be turned to, or refused.

It may say so in three ways: `knobs` in the body, a `profile`, or in the name of the model
(`embedded:medical=0.7`). What a strength may be, `alignvec.knobs.setting` says for all of alignvec.
Nothing that a request says is ever taken for the name of a file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alignvec.errors import AlignvecError, check_known
from alignvec.knobs.calibration import Calibration
from alignvec.knobs.domains import domain_of
from alignvec.knobs.setting import (
    Setting,
    SettingLike,
    check_setting,
    parse_strength,
    parse_written,
)
from alignvec.serve.errors import Refused
from alignvec.serve.profiles import Profiles
from alignvec.vector import AlignmentVector

if TYPE_CHECKING:
    from alignvec.route.router import Router

_DIGITS = 4  # after the point of a strength: what a response tells is what answered
_LONGEST = 64  # characters of a name or a strength in a message


@dataclass(frozen=True)
class Turned:
    """Which setting answers a request.

    Attributes:
        setting: every knob, after routing and rounding.
        profile: that was asked for.
        domain: that the router read in the text.
        beyond: knobs that are turned beyond their safe range.
    """

    setting: Setting
    profile: str | None = None
    domain: str | None = None
    beyond: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The `alignvec` object of a response."""
        return {
            "knobs": self.setting,
            "profile": self.profile,
            "domain": self.domain,
            "beyond_safe": list(self.beyond),
        }


class Dial:
    """The knobs of a server, as requests may turn them.

    Attributes:
        model: the name by which clients ask for it.
        default: the setting of requests that say nothing.
    """

    def __init__(
        self,
        model: str,
        vectors: Mapping[str, AlignmentVector],
        profiles: Profiles | None = None,
        default: SettingLike | None = None,
        router: Router | None = None,
    ) -> None:
        """Args:
            vectors: by knob, on the base that answers.
            router: from a text to the domain whose knobs alone act.

        Raises:
            AlignvecError: the default is no setting of these knobs, a calibration is damaged, or
                the router needs more than the text, or what is not installed.
        """
        if router is not None and router.reads != "text":
            raise AlignvecError(
                "a server routes before its engine, by the text alone, and this router reads "
                "hidden states; make one with alignvec route --reads text"
            )
        if router is not None:
            try:
                router.domain(None, None, [""])  # now, not with the first request
            except ImportError as error:
                raise AlignvecError(
                    f"the router needs {error.name}: pip install 'alignvec[search]'"
                ) from error
        self.model = model
        self.default = check_setting(default or {}, vectors)
        self._vectors = dict(vectors)
        self._measured = {
            knob: None if vector.calibration is None else Calibration.read(knob, vector.calibration)
            for knob, vector in vectors.items()
        }
        self._domains = {knob: domain_of(knob, vector) for knob, vector in vectors.items()}
        self._profiles = profiles
        self._router = router

    def read(self, model: str | None, knobs: object, profile: object, text: str) -> Turned:
        """The setting that a request asks for: the default if it says nothing, else what it says,
        knobs on top of a profile knob by knob, and every knob that it does not name at 0.

        Args:
            model: our own name, perhaps with a setting (`embedded:medical=0.7`); None: our own.
            knobs: the field of the body, whatever it holds; None: it is not there. `{}` is the
                base.
            profile: the same.
            text: what is asked last, for the router.

        Raises:
            Refused: 404: the model is another; 400: whatever else is wrong.
        """
        named = self._strengths(self._named(model), "model")
        given = {} if knobs is None else self._strengths(self._words(knobs, "knobs"), "knobs")
        if twice := named.keys() & given.keys():
            raise Refused(
                f"knob '{min(twice)}' is turned twice: in the name of the model and in knobs",
                code="knob_twice",
                param="knobs",
            )
        says_nothing = knobs is None and profile is None and not named
        start = self.default if says_nothing else self._of_profile(profile)
        turned = {**start, **named, **given}
        domain = None
        if self._router is not None:
            (domain,) = self._router.domain(None, None, [text])
            turned = {
                knob: strength if self._domains[knob] == domain else 0.0
                for knob, strength in turned.items()
            }
        setting = {knob: round(strength, _DIGITS) + 0.0 for knob, strength in turned.items()}
        return Turned(
            setting,
            None if profile is None else str(profile),
            domain,
            tuple(knob for knob, strength in setting.items() if self._is_beyond(knob, strength)),
        )

    def read_all(
        self, model: str | None, knobs: object, profile: object, texts: Sequence[str]
    ) -> Turned:
        """The same of a request that asks several things, which one setting answers.

        Raises:
            Refused: see `read`; or the router reads texts of several domains.
        """
        first, *others = (self.read(model, knobs, profile, text) for text in texts)
        if any(one.domain != first.domain for one in others):
            raise Refused(
                "the prompts are of several domains; send them in requests of their own",
                code="invalid_value",
                param="prompt",
            )
        return first

    def check(self, knobs: object) -> dict[str, float | str]:
        """The field `knobs` of a body, in the words it was asked in, known to be right.

        Raises:
            Refused: it is no setting.
        """
        asked = self._words(knobs, "knobs")
        self._strengths(asked, "knobs")
        return asked

    def knobs(self) -> list[dict[str, Any]]:
        """What there is to turn, for `/v1/knobs`: of each knob its name and domain, where its
        levels lie, its safe range, what was measured, and where it is if a request says nothing.
        """
        return [
            {
                "name": knob,
                "domain": self._domains[knob],
                "levels": measured.levels if measured else {},
                "safe": list(measured.safe) if measured else None,
                "calibration": measured
                and measured.model_dump(
                    include={"queries", "strengths", "top", "position", "leak"}
                ),
                "default": self.default[knob],
            }
            for knob, measured in self._measured.items()
        ]

    def _named(self, model: str | None) -> dict[str, float | str]:
        """The setting in the name of a model."""
        if model is None or model == self.model:
            return {}
        if not model.startswith(f"{self.model}:"):
            raise Refused(
                f"there is no model '{_short(model)}' here; ask for '{self.model}', or with knobs "
                f"for '{self.model}:{self._example}=0.7'",
                404,
                "model_not_found",
                "model",
            )
        try:
            setting = parse_written(model.removeprefix(f"{self.model}:"))
        except AlignvecError as error:
            raise Refused(str(error), code="invalid_knobs", param="model") from None
        return self._words(setting, "model")

    def _words(self, knobs: object, param: str) -> dict[str, float | str]:
        """Knobs and strengths of a field, the strengths still in words."""
        if not isinstance(knobs, Mapping):
            raise Refused(
                f'{param} is an object, from a knob to its strength, as {{"{self._example}": 0.7}}',
                code="invalid_knobs",
                param=param,
            )
        asked: dict[str, float | str] = {}
        for knob, strength in knobs.items():
            self._check_knob(knob, param)
            if isinstance(strength, str) and len(strength) <= _LONGEST:
                asked[knob] = parse_strength(strength)
            elif isinstance(strength, int | float) and not isinstance(strength, bool):
                asked[knob] = strength
            else:
                raise Refused(
                    f"knob '{knob}': a strength is a number, or a short text such as a level",
                    code="invalid_strength",
                    param=param,
                )
        return asked

    def _of_profile(self, profile: object) -> Setting:
        if profile is None:
            return dict.fromkeys(self._vectors, 0.0)
        if not isinstance(profile, str):
            raise Refused("profile is the name of one", code="invalid_value", param="profile")
        found = self._profiles.get(profile) if self._profiles else None
        if found is None:
            names = [one.name for one in self._profiles.all()] if self._profiles else []
            raise _unknown("profile", profile, names, "profile")
        try:
            return check_setting(found.setting, self._vectors)
        except AlignvecError as error:
            raise Refused(
                f"profile '{profile}' does not fit the knobs that are here now: {error}; put it "
                "anew",
                code="profile_outdated",
                param="profile",
            ) from None

    def _strengths(self, asked: SettingLike, param: str) -> Setting:
        """Those of the knobs that are asked for, as numbers."""
        try:
            checked = check_setting(asked, self._vectors)
        except AlignvecError as error:
            raise Refused(str(error), code="invalid_strength", param=param) from None
        return {knob: checked[knob] for knob in asked}

    def _check_knob(self, knob: object, param: str) -> None:
        if not isinstance(knob, str) or knob not in self._vectors:
            raise _unknown("knob", knob, sorted(self._vectors), param)

    def _is_beyond(self, knob: str, strength: float) -> bool:
        measured = self._measured[knob]
        if measured is None or not strength:
            return False
        low, high = measured.safe
        return not low <= strength <= high

    @property
    def _example(self) -> str:
        """A knob, for messages that show how one is turned."""
        return next(iter(self._vectors), "KNOB")


def _unknown(what: str, name: object, known: Sequence[str], param: str) -> Refused:
    try:
        check_known(what, _short(name), known)
    except AlignvecError as error:
        return Refused(str(error), code=f"unknown_{what}", param=param)
    return Refused(f"a {what} is named by a text", code=f"unknown_{what}", param=param)


def _short(name: object) -> str:
    """A name in a message: what is known shall stand there, too."""
    text = name if isinstance(name, str) else type(name).__name__
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
