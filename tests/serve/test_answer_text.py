"""The text of an answer as its tokens come."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignvec.base.load import load_tokenizer
from alignvec.errors import AlignvecError
from alignvec.serve.spelling import Spelling, shown
from alignvec.serve.text import Text, check_streams


@pytest.fixture(scope="module")
def tokenizer(tiny):
    return load_tokenizer(tiny("llama"))


@pytest.fixture(scope="module")
def pieces():
    """A tokenizer whose tokens are bytes, so that a character may be several."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({one: at for at, one in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core)


@pytest.fixture(scope="module")
def words():
    """One as Llama's: words with their space before them, and bytes where there is no word."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581tea", "\u2581is", "a"]
    numbers = {one: at for at, one in enumerate(tokens)}
    core = Tokenizer(models.BPE(numbers, [], unk_token="<unk>", byte_fallback=True))
    core.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")


def told(text, tokens, last=True):
    """What is told of some tokens, up to a stop."""
    found = []
    for place, token in enumerate(tokens):
        found.append(text.add(token, last=last and place == len(tokens) - 1))
        if found[-1].stopped:
            break
    return found


@given(st.text(alphabet="abc é😀\n", min_size=1, max_size=30))
@settings(max_examples=50, deadline=None)
def test_the_parts_are_the_whole_and_no_character_is_cut(pieces, written):
    found = told(Text(pieces), pieces(written)["input_ids"])
    assert "".join(one.text for one in found) == written
    assert [token for one in found for token in one.tokens] == list(range(len(found)))


@given(
    st.text(alphabet="abé", max_size=20),
    st.lists(st.text(alphabet="abé", min_size=1, max_size=4), max_size=3),
)
@settings(max_examples=100, deadline=None)
def test_a_stop_text_ends_the_answer_before_it_and_is_never_told(pieces, written, stops):
    found = told(Text(pieces, stops), pieces(written)["input_ids"])
    at = min((written.find(stop) for stop in stops if stop in written), default=None)
    # The first that is whole, and of those that become whole with one token the earliest.
    whole = [written[:end] for end in range(len(written) + 1)]
    first = next((part for part in whole if any(stop in part for stop in stops)), None)
    if first is None:
        assert at is None
        assert "".join(one.text for one in found) == written
        assert not any(one.stopped for one in found)
    else:
        wanted = first[: min(first.find(stop) for stop in stops if stop in first)]
        assert "".join(one.text for one in found) == wanted
        assert found[-1].stopped
        assert sum(len(one.tokens) for one in found) == len(wanted.encode())


def test_what_may_be_a_stop_text_is_held_back_until_it_is_none(pieces):
    text = Text(pieces, ["xyz"])
    x, y, q = pieces("xyq")["input_ids"]
    assert [text.add(one).text for one in (x, y)] == ["", ""]
    assert text.add(q).text == "xyq"
    text.add(x)
    assert text.end().text == "x"


def test_words_have_their_space_between_them_and_before_them_within_a_text(words):
    tokens = words.convert_tokens_to_ids(["\u2581tea", "\u2581is", "a"])
    assert [one.text for one in told(Text(words), tokens)] == ["tea", " is", "a"]
    assert [one.text for one in told(Text(words, before=tokens), tokens)] == [" tea", " is", "a"]


def test_bytes_that_are_no_text_spoil_nothing_that_follows_or_was_told(words):
    tokens = words.convert_tokens_to_ids(["<0xC3>", "<0xA9>", "<0xFF>", "a", "\u2581tea"])
    found = told(Text(words), tokens)
    assert [one.text for one in found] == ["", "é", "", "\ufffda", " tea"]
    assert [token for one in found for token in one.tokens] == list(range(5))


@pytest.mark.parametrize(("stop", "text"), [((), "tea w"), (("a w",), "te")])
@pytest.mark.parametrize("ends", [True, False])
def test_of_the_last_token_the_whole_characters_are_told(pieces, stop, text, ends):
    core = pieces.backend_tokenizer
    core.add_tokens(["w\xc3"])  # a w and the first byte of a character
    tokens = [*pieces("tea ")["input_ids"], core.token_to_id("w\xc3")]
    answer = Text(pieces, stop)
    found = told(answer, tokens, last=ends)
    if not ends:  # its end is a token without text
        found.append(answer.end())
    assert "".join(one.text for one in found) == text
    assert found[-1].stopped == bool(stop)


def test_an_answer_goes_on_within_a_character_of_the_prompt(pieces):
    *prompt, rest, x = pieces("tea for é" + "x")["input_ids"]
    assert [one.text for one in told(Text(pieces, before=prompt), [rest, x])] == ["é", "x"]


def test_tokens_are_spelled_in_the_bytes_that_they_stand_for(pieces, words):
    for tokenizer, text in ((pieces, "é 😀"), (words, None)):
        if text is None:
            tokens = words.convert_tokens_to_ids(["\u2581tea", "\u2581is", "<0xC3>", "<0xA9>"])
            text = " tea isé"
        else:
            tokens = tokenizer(text)["input_ids"]
        spelled = [Spelling(tokenizer)(token) for token in tokens]
        assert b"".join(spelled).decode() == text
    assert shown(b" tea") == " tea"
    assert shown("é".encode()[:1]) == r"\xc3"


def test_special_tokens_and_unknown_ones_have_no_text(tokenizer):
    text = Text(tokenizer)
    assert text.add(tokenizer.eos_token_id).text == ""
    assert text.add(10**6).text == ""


def test_a_tokenizer_that_cannot_stream_is_refused():
    with pytest.raises(AlignvecError, match=r"tokenizer\.json"):
        check_streams(object())
