"""Words, and the ends of sentences, also in scripts that put no spaces between words.

There a letter stands alone: runs of letters are compared, and the number of words is only known
to lie in a range.
"""

from __future__ import annotations

import regex

_IDEOGRAPHS = r"[\p{Han}\p{Hiragana}\p{Katakana}ー]"
_SPACELESS = r"[\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"  # alphabets; their vowels may be marks
LONE = rf"(?:{_IDEOGRAPHS}|[{_SPACELESS}&&\p{{L}}]\p{{M}}*)"
JOINED = rf"[\w--{_IDEOGRAPHS}--{_SPACELESS}]"  # of the letters of a word in other scripts
_LONE = regex.compile(LONE, regex.V1)
_WORD = regex.compile(rf"{LONE}|{JOINED}+", regex.V1)
_ALONE_OR_SPACED = regex.compile(rf"{LONE}|(?:(?!{LONE})\S)+", regex.V1)
_SENTENCE_END = regex.compile(
    # Thai and Lao end a sentence with nothing; “ closes in German.
    r"""[\p{Sentence_Terminal}…\p{Emoji_Presentation}\p{Thai}\p{Lao}]"""
    r"""[\p{Pe}\p{Pf}\p{Pi}\p{Cf}"'*_\s]*$"""
)
_IDEOGRAPH = regex.compile(_IDEOGRAPHS, regex.V1)
# Letters that a word has, at least and at most.
_OF_IDEOGRAPHS, _OF_ALPHABET = (1, 2), (2, 6)


def words(text: str) -> list[str]:
    """The words, without punctuation; a letter that stands alone is one."""
    found: list[str] = _WORD.findall(text)
    return found


def pieces(text: str) -> list[str]:
    """What stands between spaces, punctuation with it; a letter that stands alone is one."""
    found: list[str] = _ALONE_OR_SPACED.findall(text)
    return found


def ends_sentence(text: str) -> bool:
    """Whether a text ends where a sentence does, marks that close aside."""
    return _SENTENCE_END.search(text.rstrip()[-100:]) is not None


def lone_letters(text: str) -> int:
    return len(_LONE.findall(text))


def word_range(text: str) -> tuple[int, int]:
    """The least and the most words that a text can have. With spaces between them both are the
    number of words.
    """
    letters = lone_letters(text)
    if not letters:
        return (count := len(text.split())), count
    spaced = sum(
        regex.search(JOINED, part, regex.V1) is not None
        for part in pieces(text)
        if not _LONE.match(part)
    )
    ideographs = len(_IDEOGRAPH.findall(text))
    least, most = spaced, spaced
    for count, (fewest, longest) in (
        (ideographs, _OF_IDEOGRAPHS),
        (letters - ideographs, _OF_ALPHABET),
    ):
        least, most = least + count // longest, most + -(-count // fewest)
    return least, most


def word_count(text: str) -> int:
    """About so many words; exactly, with spaces between them."""
    return sum(word_range(text)) // 2
