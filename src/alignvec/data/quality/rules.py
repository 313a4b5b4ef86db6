"""The rules of `data clean`. Most look at one record: a function that says what is wrong with it.

They would rather let a fault pass than reject a good record.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from typing import NamedTuple

import regex

from alignvec.data.quality.expected import Expected
from alignvec.data.quality.language import language_of, whole_language
from alignvec.data.records import Record
from alignvec.data.words import JOINED, ends_sentence, word_range

Check = Callable[[Record, Expected], str | None]
_TOLERANCE = 0.1  # writers do not count words well


def _responses(record: Record, expected: Expected) -> Iterator[tuple[str, str]]:
    return ((level, record.levels[level].replace("’", "'")) for level in expected.levels)


def _texts(record: Record, expected: Expected) -> Iterator[tuple[str, str]]:
    """(field, text) of everything that somebody wrote."""
    yield "persona", record.persona
    yield "query", record.query
    yield from _responses(record, expected)


def is_whole(record: Record, expected: Expected) -> str | None:
    if expected.unusable:
        return expected.unusable
    fields = {name: getattr(record, name) for name in expected.fields}
    fields |= {level: record.levels.get(level, "") for level in expected.levels}
    missing = (name for name, text in fields.items() if not text.strip())
    return next((f"'{name}' is missing, empty or not text" for name in missing), None)


def is_in_language(record: Record, expected: Expected) -> str | None:
    if expected.language is None:
        return None
    wanted = whole_language(expected.language)
    texts = dict(_texts(record, expected))
    for field, text in {**texts, "all of it": " ".join(texts.values())}.items():
        language = language_of(text)
        if language and language != wanted:
            return f"'{field}' reads as language '{language}', not '{wanted}'"
    return None


_META = regex.compile(
    r"""\b as \s an? \s (?:AI|artificial|(?:large\s)?language\smodel|chatbot|virtual\sassistant)\b
    | \b I(?:'m|\sam) \s (?:just\s|only\s)? an? \s (?:AI|(?:large\s)?language\smodel|chatbot)\b
    | \b (?:here(?:'s|\sis|\sare)|below\sis) \s (?:an?|the|my|your|one|some) \s
      (?:[\w-]+\s){0,3} (?:response|answer|reply|version|rewrite|paragraph|draft)s? \b
    | \b I \s hope \s this \s (?:helps|response|answer)
    | \b word \s count: | \(\d+ \s words\)
    | \[(?:insert|your|name|placeholder)\b[^\]]{0,80}\] | \[/?INST\]
    | <\|?/?(?:think|im_\w+|endoftext|eot_id|s)\|?>""",
    regex.VERBOSE | regex.IGNORECASE,
)
_META_OPENING = r"^\W*(?:(?:sure|certainly|of course|absolutely)\W+)?here(?:'s| is| are)\b"
_LABELS = ("response", "answer", "assistant", "user", "query", "question", "persona")


def is_to_the_point(record: Record, expected: Expected) -> str | None:
    labels = "|".join(map(regex.escape, (*expected.levels, *_LABELS)))
    label = rf"^\W*(?:{labels})(?: (?:level|response|answer))?(?:\W*:|\s*\])"
    for field, text in _texts(record, expected):
        found = _META.search(text) or regex.search(label, text, regex.IGNORECASE)
        if not found and field in record.levels:
            found = regex.search(_META_OPENING, text, regex.IGNORECASE)
        if found:
            return f"'{field}' talks about itself: \"{found.group().strip()}\""
    return None


_MARKUP = regex.compile(
    r"""\*\*|`|\b__\w|\w__\b
    | ^[ \t]*(?:\#{1,6}\s|[-*+•]\s|\d{1,2}[.)]\s|>\s|\|.*\||[-=*_]{3,}$)
    | (?<![\w*])\*\w[^*\n]*\w\*(?![\w*]) | \]\((?:https?:|/|\#)
    | </?(?:b|i|u|em|strong|p|br|hr|ul|ol|li|h[1-6]|div|span|a|code|pre|table|t[rdh])\b[^<>]*>""",
    regex.VERBOSE | regex.IGNORECASE | regex.MULTILINE,
)


def is_plain_text(record: Record, expected: Expected) -> str | None:
    for field, text in _texts(record, expected):
        if found := _MARKUP.search(text):
            return f"'{field}' has markup: \"{found.group().strip()}\""
    return None


_HELPING = r"""(?:advi[sc]|assess|comment|weigh|answer|help|assist|offer|giv|provid|discuss|suggest|
    recommend|interpret|guid|confirm|address|respond|explain|fulfil)"""
_REFUSAL = regex.compile(
    rf"""\b I (?:'m|'ll|'d|\s (?:am|will|would|must|have\sto))?
      (?:'t | \s (?:can't|cannot|can\snot|won't|not|couldn't|wouldn't|don't|do\snot|unable))
      (?: \s (?:be|able|to|going|in|a|position|comfortable|willing|qualified|really|possibly|safely|
        responsibly|legally|personally|currently))* \s {_HELPING}
    | \b I (?:'ll|'d|\s (?:will|would|must|have\sto))? (?:\s respectfully)?
      \s (?:declin(?:e|ing)|refus(?:e|ing)|refrain(?:ing)?) \s (?:to|from) \b
    | \b I(?:'m|\sam) \s (?:declining|refraining|not \s going \s to)\b
    | \b I(?:'m|\sam) \s (?:sorry|afraid) \b [^.!?]{{0,20}} \b (?:can't|cannot|won't|unable)
    | \b I(?:'m|\sam) \s not \s (?:qualified|licensed|able|in\sa\sposition) \s to \b
    | (?:\bnot|n't) \s something \s (?:that\s)? I(?:'m|'ll|\s(?:am|will|can|would)) \b
    | \b not \s for \s me \s to \b | \b no \s (?:advice|opinion|guidance) \s from \s me \b""",
    regex.VERBOSE | regex.IGNORECASE,
)


def answers(record: Record, expected: Expected) -> str | None:
    if not can_tell_refusals(expected):
        return None
    for level, text in _responses(record, expected):
        if level not in expected.declining and (found := _REFUSAL.search(text)):
            return f"'{level}' declines: \"{found.group()}\""
    return None


def can_tell_refusals(expected: Expected) -> bool:
    return expected.spectrum is not None and expected.language == "en"


_TRAILING = regex.compile(r"(?:\.\.|…)\W*$")


def is_finished(record: Record, expected: Expected) -> str | None:
    for level, text in _responses(record, expected):
        if not ends_sentence(text) or _TRAILING.search(text.rstrip()[-100:]):
            return f"'{level}' stops in the middle: \"...{text[-30:]}\""
    return None


def is_in_band(record: Record, expected: Expected) -> str | None:
    if expected.spectrum is None:
        return None
    for level, text in _responses(record, expected):
        fewest, longest = word_range(text)
        least, most = expected.spectrum.band(level)
        if longest < least * (1 - _TOLERANCE) or fewest > most * (1 + _TOLERANCE):
            words = f"{fewest}" if fewest == longest else f"{fewest} to {longest}"
            return f"'{level}' has {words} words, not {least} to {most}"
    return None


_EMAIL = regex.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
# A number may touch the letters of a script without spaces: it begins and ends there all the same.
_PHONE = regex.compile(
    rf"""(?<!{JOINED}|[+.,/-]) (?!\d{{5}}-\d{{4}}\b) (?:
      \+\d{{1,3}} (?:[\s.-]?\(?\d{{1,4}}\)?){{2,6}}
    | (?:1[-.\s])? (?:\(\d{{3}}\)\s?|\d{{3}}[-.]) \d{{3}}[-.\s]\d{{4}}
    | \(?0\d{{1,4}}\)? [\s-] \d{{3,8}} (?:[\s-]\d{{2,6}}){{0,3}} | 0\d{{2,4}}/\d{{5,8}}
    | 0\d(?:[\s.]\d\d){{4}} | 0\d{{9,10}}
    ) (?!{JOINED}|%|[.,]\d)""",
    regex.VERBOSE | regex.V1,
)
_FREEPHONE = regex.compile(r"1?8(?:00|33|44|55|66|77|88)|(?:0|44)80[08]")  # of a body, not a person
_IBAN = regex.compile(
    rf"(?<!{JOINED})[A-Z]{{2}}\d\d(?: ?[A-Z\d]{{4}}){{2,7}}(?: ?[A-Z\d]{{1,3}})?(?!{JOINED})",
    regex.V1,
)
_CARD = regex.compile(r"(?<![\d.,])[2-6]\d{3}(?:[ -]?\d){9,15}(?![\d.,]\d|\d)")
_SSN = regex.compile(r"(?<![\d-])(?!000|666|9)\d{3}-(?!00)\d\d-(?!0000)\d{4}(?![\d-])")
_ADDRESS = regex.compile(
    rf"(?<!{JOINED}|[.:])(?:\d{{1,3}}(?:\.\d{{1,3}}){{3}}|[\da-fA-F:]{{4,39}})(?!{JOINED}|:|\.\d)",
    regex.V1,
)


def has_no_personal_data(record: Record, expected: Expected) -> str | None:
    for field, text in _texts(record, expected):
        for what, found in _personal(text):
            return f"'{field}' has {what}: {found}"
    return None


def _personal(text: str) -> Iterator[tuple[str, str]]:
    for found in _EMAIL.findall(text):
        yield "an e-mail address", found
    for found in _IBAN.findall(text):
        if _is_iban(found):
            yield "an IBAN", found
    for found in _CARD.findall(text):
        if _is_card(found):
            yield "a payment card number", found
    for found in _SSN.findall(text):
        yield "a social security number", found
    for found in _PHONE.findall(text):
        digits = regex.sub(r"\D", "", found)
        if 9 <= len(digits) <= 15 and not _FREEPHONE.match(digits):
            yield "a phone number", found
    for found in _ADDRESS.findall(text):
        if _is_address(found):
            yield "an IP address", found


def _is_iban(text: str) -> bool:
    """Its checksum is right (ISO 7064, 97-10)."""
    code = text.replace(" ", "")
    return int("".join(str(int(letter, 36)) for letter in code[4:] + code[:4])) % 97 == 1


def _is_card(text: str) -> bool:
    """Its check digit is right (Luhn)."""
    digits = [int(digit) for digit in reversed(text) if digit.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[1::2]]
    return len(digits) in (13, 15, 16, 19) and (sum(digits[::2]) + sum(doubled)) % 10 == 0


def _is_address(text: str) -> bool:
    """Short numbers with dots, as 1.4.10.2, are sections of a guideline more often."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if address.version == 6:
        return ":" in text.strip(":")
    return len(text) >= 10 or int(text.split(".")[0]) >= 10


class Rule(NamedTuple):
    """Without a check it looks at the whole set, see `alignvec.data.quality.clean`."""

    about: str
    check: Check | None = None


RULES = {
    "schema": Rule("a JSON object with id, query, every level, and what others have", is_whole),
    "language": Rule("in the spectrum's language, else that of most", is_in_language),
    "meta": Rule("no talk about itself: 'as an AI', 'here is', labels", is_to_the_point),
    "markdown": Rule("plain text, no markdown or HTML", is_plain_text),
    "personal": Rule(
        "no e-mail address, phone, IBAN, card, social security number, IP address",
        has_no_personal_data,
    ),
    "refusal": Rule("no refusal at a level that answers", answers),
    "truncated": Rule("responses end where a sentence ends", is_finished),
    "length": Rule("words within the spectrum's band, give or take 10%", is_in_band),
    "leakage": Rule("no query or response nearly as in another split"),
    "duplicate": Rule("no id, query or response twice; no persona more often than usual"),
    "near_duplicate": Rule("no persona, query or response nearly as another"),
    "level_order": Rule("no level reads lower than one below it"),
    "no_refusal": Rule("a level that declines reads so"),
}
