"""The rules of `data clean`. Most look at one record: a function that says what is wrong with it.

They would rather let a fault pass than reject a good record.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from typing import NamedTuple

import regex

from alignvec.data.expected import Expected
from alignvec.data.records import Record

Check = Callable[[Record, Expected], str | None]
_TOLERANCE = 0.1  # writers do not count words well
_ENOUGH = 20  # words from which the language of a text is plain


def _responses(record: Record, expected: Expected) -> Iterator[tuple[str, str]]:
    return ((level, record.levels[level]) for level in expected.levels)


def _texts(record: Record, expected: Expected) -> Iterator[tuple[str, str]]:
    """(field, text) of everything that somebody wrote."""
    yield "persona", record.persona
    yield "query", record.query
    yield from _responses(record, expected)


def has_levels(record: Record, expected: Expected) -> str | None:
    for level in expected.levels:
        if not record.levels.get(level, "").strip():
            return f"'{level}' is missing, empty or not text"
    return None


def is_in_language(record: Record, expected: Expected) -> str | None:
    from py3langid import classify

    wanted = expected.language
    texts = dict(_texts(record, expected))
    long = {field: text for field, text in texts.items() if len(text.split()) >= _ENOUGH}
    for field, text in {**long, "all of it": " ".join(texts.values())}.items():
        language = classify(text)[0]
        if language != wanted:
            return f"'{field}' reads as language '{language}', not '{wanted}'"
    return None


_META = regex.compile(
    r"""\b as \s an? \s (?:AI|artificial|(?:large\s)?language\smodel|chatbot|virtual\sassistant)\b
    | \b I(?:'m|\sam) \s (?:just\s|only\s)? an? \s (?:AI|(?:large\s)?language\smodel|chatbot)\b
    | \b (?:here(?:'s|\sis|\sare)|below\sis|this\sis) \s (?:an?|the|my|your|one|some) \s
      (?:[\w-]+\s){0,3} (?:response|answer|reply|version|rewrite|paragraph|draft)s? \b
    | \b I \s hope \s this \s (?:helps|response|answer)
    | \b word \s count \b | \(\d+ \s words\)
    | \[(?:insert|your|name|placeholder)\b[^\]]*\] | <\|?/?(?:think|im_\w+|endoftext|eot_id|s)\|?>
    | \[/?INST\]""",
    regex.VERBOSE | regex.IGNORECASE,
)
_META_OPENING = r"^\W*(?:(?:sure|certainly|of course|absolutely)\W+)?here(?:'s| is| are)\b"
_LABELS = ("response", "answer", "assistant", "user", "query", "question", "persona")


def is_to_the_point(record: Record, expected: Expected) -> str | None:
    labels = "|".join((*expected.levels, *_LABELS))
    label = rf"^\W*(?:{labels})(?: (?:level|response|answer))?\W*:"
    for field, text in _texts(record, expected):
        found = _META.search(text) or regex.search(label, text, regex.IGNORECASE)
        if not found and field in record.levels:
            found = regex.search(_META_OPENING, text, regex.IGNORECASE)
        if found:
            return f"'{field}' talks about itself: \"{found.group().strip()}\""
    return None


_MARKUP = regex.compile(
    r"""\*\*|`|\b__\w|\w__\b | ^\s*(?:\#{1,6}\s|[-*+•]\s|\d{1,2}[.)]\s|>\s|\|.*\|) | ^\s*[-=*_]{3,}$
    | (?<![\w*])\*\w[^*\n]*\w\*(?![\w*]) | \]\((?:https?:|/|\#)
    | </?(?:b|i|u|em|strong|p|br|hr|ul|ol|li|h[1-6]|div|span|a|code|pre|table|t[rdh])\b[^<>]*>""",
    regex.VERBOSE | regex.IGNORECASE | regex.MULTILINE,
)


def is_plain_text(record: Record, expected: Expected) -> str | None:
    for field, text in _texts(record, expected):
        if found := _MARKUP.search(text):
            return f"'{field}' has markup: \"{found.group().strip()}\""
    return None


_REFUSING = r"""(?:can't|cannot|can\snot|won't|will\snot|couldn't|wouldn't|don't|do\snot|not|unable|
    declin\w+|refus\w+|refrain\w*)"""
_HELPING = r"""(?:advi[sc]|assess|comment|weigh|answer|say|tell|help|assist|offer|giv|provid|discuss|
    recommend|suggest|opin|interpret|judg|guid|decid|confirm|address|speak|respond|explain|fulfil)"""
_REFUSAL = regex.compile(
    rf"""\b I(?:'m|'ll|'d)? \s (?:(?:am|will|would|must|have\sto|going\sto|really|simply|just) \s)*
      {_REFUSING} \b [^.!?]{{0,60}} \b {_HELPING}
    | \b I(?:'m|\sam) \s (?:sorry|afraid) \b [^.!?]{{0,40}} \b (?:can't|cannot|won't|unable|not\sable)
    | \b I(?:'m|\sam) \s (?:unable | not \s (?:qualified|licensed|able|in\sa\sposition|the\sright))\b
    | (?:\bnot|n't) \s (?:something|anything) \s (?:that\s)? I(?:'m|'ll|\s(?:am|will|can|would)) \b
    | \b not \s for \s me \s to \b | \b (?:no|any) \s (?:advice|opinion|guidance) \s from \s me \b""",
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


_ENDING = regex.compile(r"""[\p{Sentence_Terminal}\p{Emoji_Presentation}][\p{Pe}\p{Pf}"']*\s*$""")
_TRAILING = regex.compile(r"(?:\.\.|…)\W*$")


def is_finished(record: Record, expected: Expected) -> str | None:
    for level, text in _responses(record, expected):
        if not _ENDING.search(text) or _TRAILING.search(text):
            return f"'{level}' stops in the middle: \"...{text[-30:]}\""
    return None


def is_in_band(record: Record, expected: Expected) -> str | None:
    if expected.spectrum is None:
        return None
    for level, text in _responses(record, expected):
        words = len(text.split())
        least, most = expected.spectrum.band(level)
        if not least * (1 - _TOLERANCE) <= words <= most * (1 + _TOLERANCE):
            return f"'{level}' has {words} words, not {least} to {most}"
    return None


_EMAIL = regex.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
_PHONE = regex.compile(
    r"""(?<![\w+.,]) (?: \+\d{1,3} (?:[\s.-]?\(?\d{1,4}\)?){2,6}
    | (?:1[-.\s])? (?:\(\d{3}\)\s?|\d{3}[-.]) \d{3}[-.\s]\d{4}
    | \(?0\d{1,4}\)? [\s/-] \d{3,8} (?:[\s-]\d{2,6}){0,3} | 0\d(?:[\s.]\d\d){4} | 0\d{9,10}
    ) (?![\w%]|[.,]\d)""",
    regex.VERBOSE,
)
_FREEPHONE = regex.compile(r"1?8(?:00|33|44|55|66|77|88)|(?:0|44)80[08]")  # of a body, not a person
_IBAN = regex.compile(r"\b[A-Z]{2}\d\d(?: ?[A-Z\d]{4}){2,7}(?: ?[A-Z\d]{1,3})?\b")
_CARD = regex.compile(r"(?<![\d.,])[2-6]\d{3}(?:[ -]?\d){9,15}(?![\d.,]\d|\d)")
_SSN = regex.compile(r"(?<![\d-])(?!000|666|9)\d{3}-(?!00)\d\d-(?!0000)\d{4}(?![\d-])")
_ADDRESS = regex.compile(r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|[\da-fA-F:]{4,39})(?![\w:]|\.\d)")


def names_nobody(record: Record, expected: Expected) -> str | None:
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
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0


def _is_address(text: str) -> bool:
    """1.4.10.2 is a section of a guideline more often than an address."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return len(text) >= 8 if address.version == 4 else ":" in text.strip(":")


class Rule(NamedTuple):
    """Without a check it looks at the whole set, see `alignvec.data.clean`."""

    about: str
    check: Check | None = None


RULES = {
    "schema": Rule("a JSON object with id, query and every level", has_levels),
    "language": Rule("in the language of the spectrum", is_in_language),
    "meta": Rule("no talk about itself: 'as an AI', 'here is', labels", is_to_the_point),
    "markdown": Rule("plain text, no markdown or HTML", is_plain_text),
    "personal": Rule(
        "no e-mail address, phone, IBAN, card, social security number, IP address", names_nobody
    ),
    "refusal": Rule("no refusal at a level that answers", answers),
    "truncated": Rule("responses end where a sentence ends", is_finished),
    "length": Rule("words within the spectrum's band, give or take 10%", is_in_band),
    "leakage": Rule("no query or response nearly as in another split"),
    "duplicate": Rule("no id, persona, query or response twice"),
    "near_duplicate": Rule("no persona, query or response nearly as another"),
    "level_order": Rule("no level reads lower than one below it"),
    "no_refusal": Rule("a level that declines reads so"),
}
