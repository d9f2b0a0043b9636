"""The parser's rules one by one, and its two properties: total, and blind to where the text was cut."""

import itertools
import random
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.mllm.generation_prompt import (
    MAX_PROMPT_CHARS,
    MAX_PROMPTS,
    Fallback,
    GenerationPromptParser,
    Parsed,
    parse,
)

FRAGMENTS = [
    "<gen_image>", "</gen_image>", "<gen_image", "</gen_im", "<gen", "_image>", "</", "<", ">", "/", " ", "\n", "\t",
    "a", "red fox", ":1.", "3)", ":-2]", "10",
    "雪人", "é", "e\u0301", "👩‍🚀", "(b:1.3)", "[c]", "{d|e}", "\\(", "<lora:x:0.8>", "<lora:", "<lo",
    "ra:y>", "<b>", ":", "\x00", "\x1b[31m", "\u200b", "\u202e", "\ud800", "\ue000", "\u2028", "\x85",
]  # fmt: skip

answers = st.one_of(
    st.lists(st.sampled_from(FRAGMENTS), max_size=24).map("".join),
    st.text(st.characters(), max_size=80),
)


def fed_in_pieces(answer: str, cuts: list[int]) -> tuple[str, Parsed]:
    """Return the concatenated deltas and the end, for an answer cut at these places."""
    parser = GenerationPromptParser()
    edges = [0, *sorted(cut % (len(answer) + 1) for cut in cuts), len(answer)]
    deltas = [parser.feed(answer[start:end]) for start, end in itertools.pairwise(edges)]
    end = parser.finish()
    return "".join(deltas) + end.delta, end


def assert_clean(text: str) -> None:
    """Fail if the text holds what a renderer or a terminal could take for a command."""
    assert text == " ".join(text.split()), "white space is single and inside"
    assert not set(text) & set("()[]{}<>\\")
    assert not {unicodedata.category(sign) for sign in text} & {"Cc", "Cf", "Cs", "Co"}
    assert len(text) <= MAX_PROMPT_CHARS
    text.encode()


@pytest.mark.parametrize(
    ("answer", "text", "fallback"),
    [
        ("<gen_image> a red fox </gen_image>", "a red fox", None),
        ("Sure! <gen_image>a red fox</gen_image> Enjoy.", "a red fox", None),
        ("<gen_image> one </gen_image> and <gen_image> two </gen_image>", "one", None),
        ("<gen_image> one </gen_image> and <gen_image> two", "one", None),
        ("<gen_image>  </gen_image> then <gen_image> two </gen_image>", "two", None),
        ("<gen_image> a <gen_image> b </gen_image> c </gen_image>", "a b", None),
        ("</gen_image> x <gen_image> y </gen_image>", "y", None),
        ("<gen_image> a red fox", "a red fox", Fallback.UNCLOSED),
        ("<gen_image> a red fox </gen_im", "a red fox", Fallback.UNCLOSED),
        ("a red fox </gen_image> in the snow", "a red fox", Fallback.UNOPENED),
        ("A red fox in the snow.", "A red fox in the snow.", Fallback.ANSWER),
        ("A red fox <gen_image></gen_image> in the snow", "A red fox in the snow", Fallback.ANSWER),
        ("</gen_image> a red fox", "a red fox", Fallback.ANSWER),
        ("<GEN_IMAGE> a red fox </GEN_IMAGE>", "GEN_IMAGE a red fox /GEN_IMAGE", Fallback.ANSWER),
        ("<gen_image > a </gen_image >", "gen_image a /gen_image", Fallback.ANSWER),
        ("", "", Fallback.EMPTY),
        ("<gen_image></gen_image>", "", Fallback.EMPTY),
        (" \n\x00 (((", "", Fallback.EMPTY),
    ],
)  # fmt: skip
def test_each_rule_of_the_protocol(answer: str, text: str, fallback: Fallback | None) -> None:
    parsed = parse(answer)
    assert (parsed.text, parsed.fallback) == (text, fallback)
    assert parsed.delta == text


@pytest.mark.parametrize(
    ("inside", "text"),
    [
        ("a (red:1.9) fox", "a red fox"),
        ("a [red:-0.5] {fox:.25}", "a red fox"),
        ("a (red : 1.9) fox: 1.9", "a red : 1.9 fox: 1.9"),
        ("a station (at 10:30) at 7:05", "a station at 10:30 at 7:05"),
        ("a {red|blue} fox", "a red|blue fox"),
        ("a ((red)) [fox]", "a red fox"),
        ("a fox <lora:evil:1.0> at night", "a fox at night"),
        ("a fox<hypernet:x:2>", "a fox"),
        ("a < b > c", "a b c"),
        (r"a \(fox\)", "a fox"),
        ("a\nred\r\n\tfox", "a red fox"),
        ("a\x00 re\u200bd\x1b fox\u202e", "a red fox"),
        ("a <lora:" + "x" * 200 + "> fox", "a lora:" + "x" * 200 + " fox"),
        ("雪人，夜晚 — “quoted”", "雪人，夜晚 — “quoted”"),
    ],
)
def test_what_a_renderer_would_take_for_syntax_is_neutralised(inside: str, text: str) -> None:
    assert parse(f"<gen_image> {inside} </gen_image>").text == text


def test_a_directive_cut_over_deltas_never_shows() -> None:
    parser = GenerationPromptParser()
    shown = [parser.feed(piece) for piece in ["<gen_image> fox <lo", "ra:x", ":1", "> end", "</gen_image>"]]
    assert shown == ["fox", "", "", " end", ""]


def test_a_weight_cut_over_deltas_never_shows() -> None:
    parser = GenerationPromptParser()
    shown = [
        parser.feed(piece) for piece in ["<gen_image>a (fox", ":", "1.", "5", ") at 9", ":3", "0)", "</gen_image>"]
    ]
    assert shown == ["a fox", "", "", "", " at 9", ":3", "0", ""]


@pytest.mark.parametrize(
    ("answer", "texts"),
    [
        ("<gen_image> one </gen_image> and <gen_image> two </gen_image>", ["one", "two"]),
        ("1. <gen_image>a</gen_image>2. <gen_image></gen_image><gen_image>(b)</gen_image> end", ["a", "b"]),
        ("<gen_image>a</gen_image></gen_image><gen_image>b<gen_image>c</gen_image>", ["a", "b c"]),
        ("<gen_image>a</gen_image> then <gen_image> b, cut o", ["a", "b, cut o"]),
        ("<gen_image>a</gen_image> then <gen_image> b</gen_im", ["a", "b"]),
        ("<gen_image>a</gen_image> then <gen_im", ["a"]),
        ("<gen_image>a</gen_image>" * 40, ["a"] * MAX_PROMPTS),
    ],
)
def test_the_prompts_of_all_pairs_are_kept_in_order(answer: str, texts: list[str]) -> None:
    parsed = parse(answer)
    assert [parsed.text, *parsed.more] == texts
    assert parsed.delta == texts[0]
    assert parsed.fallback is None


def test_a_tag_cut_over_deltas_is_found() -> None:
    parser = GenerationPromptParser()
    shown = [parser.feed(sign) for sign in "no <gen_image> a fox </gen_image> no"]
    assert "".join(shown) == "a fox"
    assert parser.is_complete


def test_nothing_is_held_back_longer_than_needed() -> None:
    parser = GenerationPromptParser()
    assert parser.feed("<gen_image> a fox") == "a fox"
    assert parser.feed(" <") == ""
    assert parser.feed("x ") == " x"


def test_a_prompt_beyond_the_limit_is_cut_and_says_so() -> None:
    parsed = parse("<gen_image>" + "fox " * MAX_PROMPT_CHARS + "</gen_image>")
    assert len(parsed.text) <= MAX_PROMPT_CHARS
    assert parsed.was_cut
    assert not parse("<gen_image>" + "f" * MAX_PROMPT_CHARS + "</gen_image>").was_cut


@given(answers, st.lists(st.integers(min_value=0, max_value=10_000), max_size=30))
@settings(max_examples=500, deadline=None)
def test_any_split_gives_what_the_whole_gives(answer: str, cuts: list[int]) -> None:
    whole = parse(answer)
    deltas, end = fed_in_pieces(answer, cuts)
    assert deltas == whole.text == end.text
    assert (end.fallback, end.was_cut, end.more) == (whole.fallback, whole.was_cut, whole.more)


@given(answers)
@settings(max_examples=500, deadline=None)
def test_every_text_gives_a_clean_prompt(answer: str) -> None:
    parsed = parse(answer)
    for text in (parsed.text, *parsed.more):
        assert_clean(text)


def test_a_hundred_thousand_random_answers_give_prompts_that_do_not_depend_on_the_cuts() -> None:
    rng = random.Random(7)
    for _ in range(100_000):
        answer = "".join(rng.choices(FRAGMENTS, k=rng.randrange(10)))
        whole = parse(answer)
        deltas, end = fed_in_pieces(answer, [rng.randrange(100) for _ in range(rng.randrange(4))])
        assert deltas == whole.text == end.text, answer
        assert (end.fallback, end.more) == (whole.fallback, whole.more), answer
