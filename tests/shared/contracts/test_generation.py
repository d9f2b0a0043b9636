import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from shared.contracts import GenerationRequest, OutputFormat
from shared.contracts.generation import (
    MAX_IMAGE_CHARS,
    MAX_IMAGES,
    MAX_INSTRUCTION_CHARS,
    MAX_PROMPT_TOKENS,
    MAX_SEED,
    MAX_SIDE_PX,
    MAX_STEPS,
    MIN_EDIT_STRENGTH,
    MIN_PROMPT_TOKENS,
    MIN_SIDE_PX,
    parse_size,
)


def request(**fields: Any) -> GenerationRequest:
    return GenerationRequest.model_validate({"instruction": "a snowman", **fields})


@pytest.mark.parametrize(
    ("field", "least", "most"),
    [
        ("n", 1, MAX_IMAGES),
        ("seed", 0, MAX_SEED - MAX_IMAGES),
        ("num_inference_steps", 1, MAX_STEPS),
        ("max_prompt_tokens", MIN_PROMPT_TOKENS, MAX_PROMPT_TOKENS),
        ("guidance_scale", 0, 30),
        ("guidance_rescale", 0, 1),
        ("clip_skip", 0, 4),
        ("deadline_s", 5e-324, 86_400),
    ],
)
def test_numbers_are_taken_up_to_their_bounds_and_no_further(field: str, least: float, most: float) -> None:
    assert getattr(request(**{field: least}), field) == least
    assert getattr(request(**{field: most}), field) == most
    beyond = (math.nextafter(most, math.inf), math.nextafter(least, -math.inf), most + 1, -1)
    for value in beyond:
        with pytest.raises(ValidationError):
            request(**{field: value})


NONSENSE = [math.nan, math.inf, -math.inf, 2**63, -(2**63), 10**400, -1, "", "3", "NaN", True, [], {}, [1], b"1"]


@pytest.mark.parametrize("field", ["n", "seed", "num_inference_steps", "guidance_scale", "deadline_s"])
@pytest.mark.parametrize("value", NONSENSE, ids=lambda value: repr(value)[:20])
def test_what_is_no_fitting_number_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError):
        request(**{field: value})


@pytest.mark.parametrize("field", ["n", "seed", "num_inference_steps"])
@pytest.mark.parametrize("value", [1.5, 1e30, 2.0000001])
def test_counts_have_no_fractions(field: str, value: float) -> None:
    with pytest.raises(ValidationError):
        request(**{field: value})


@pytest.mark.parametrize("field", ["n", "guidance_scale", "deadline_s"])
@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e400", "9" * 5_000, "-0.1"])
def test_numbers_that_json_should_not_hold_are_refused(field: str, text: str) -> None:
    with pytest.raises(ValidationError):
        GenerationRequest.model_validate_json(f'{{"instruction": "x", "{field}": {text}}}')


@pytest.mark.parametrize("field", ["approve", "deterministic"])
@pytest.mark.parametrize("value", ["yes", "true", 1, 0, None, []])
def test_flags_are_true_or_false(field: str, value: object) -> None:
    with pytest.raises(ValidationError):
        request(**{field: value})


@pytest.mark.parametrize(
    "text", ["x", "雪", "☃", "!", " a\n", "x" * MAX_INSTRUCTION_CHARS, "😀" * MAX_INSTRUCTION_CHARS]
)
def test_an_instruction_may_be_any_visible_text(text: str) -> None:
    assert request(instruction=text).instruction == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\t\r\n",
        "\u3000\u00a0",  # the wide and the unbreakable space
        "\u200b\ufeff\u2060",  # zero-width
        "a\x00b",
        "x" * (MAX_INSTRUCTION_CHARS + 1),
        "x" * 100_000,
        " " * 1_000_000,
        "\ud800",  # half of a surrogate pair
        None,
        7,
        ["x"],
    ],
    ids=lambda text: repr(text)[:20],
)
def test_an_instruction_without_visible_text_or_too_long_is_refused(text: object) -> None:
    with pytest.raises(ValidationError):
        request(instruction=text)


@pytest.mark.parametrize("text", ["a\x00b", "x" * (MAX_INSTRUCTION_CHARS + 1)])
def test_a_negative_prompt_keeps_the_same_bounds(text: str) -> None:
    assert request(negative_prompt="").negative_prompt == ""
    with pytest.raises(ValidationError):
        request(negative_prompt=text)


@pytest.mark.parametrize("size", ["64x64", "64x2048", "2048x64", "512x768", f"{MAX_SIDE_PX}x{MAX_SIDE_PX}"])
def test_sizes_within_bounds_are_taken(size: str) -> None:
    width, _, height = size.partition("x")
    assert request(size=size).size == size
    assert parse_size(size) == (int(width), int(height))


@pytest.mark.parametrize(
    "size",
    [
        *("512", "512x", "x512", "512x512x512", "512 x 512", " 512x512", "512x512\n", "512X512", "512×512", "512*512"),
        *("0x0", "00512x512", "-512x512", "+512x512", "512.0x512", "1e3x512", "٥١٢x٥١٢", "", "axb"),
        *("56x64", "64x56", "63x64", "65x64", "100x100", "2056x64", "64x2049", "99999x99999", "9" * 10_000 + "x64"),
        *(512, [512, 512], {"width": 512}),
    ],
    ids=lambda size: repr(size)[:20],
)
def test_other_sizes_are_refused(size: object) -> None:
    with pytest.raises(ValidationError):
        request(size=size)


@given(st.text(max_size=30))
def test_any_text_is_a_size_or_a_value_error(text: str) -> None:
    try:
        width, height = parse_size(text)
    except ValueError:
        return
    assert all(MIN_SIDE_PX <= side <= MAX_SIDE_PX and side % 8 == 0 for side in (width, height))
    assert text == f"{width}x{height}"


@pytest.mark.parametrize("field", ["task", "prompt_mode", "prompt_encoding", "lane", "scheduler", "output_format"])
@pytest.mark.parametrize("value", ["", "nonsense", "PNG", 1, [], "png ", "\x00"])
def test_choices_are_exact(field: str, value: object) -> None:
    with pytest.raises(ValidationError):
        request(**{field: value})


@pytest.mark.parametrize("name", ["model_", "Instruction", "prompt", "steps", "__class__", "", "n "])
def test_unknown_fields_are_refused_by_name(name: str) -> None:
    with pytest.raises(ValidationError) as caught:
        request(**{name: 1})
    assert [fault["loc"] for fault in caught.value.errors()] == [(name,)]


@pytest.mark.parametrize("model", ["", "x" * 129, 3])
def test_a_model_has_a_name_of_bounded_length(model: object) -> None:
    assert request(model="x" * 128).model == "x" * 128
    with pytest.raises(ValidationError):
        request(model=model)


@pytest.mark.parametrize(
    "fields",
    [
        {"task": "prompt", "prompt_mode": "verbatim"},
        {"task": "prompt", "approve": True},
        {"prompt_mode": "verbatim", "approve": True},
        {"task": "similar", "image": "img_1", "prompt_mode": "verbatim"},
        {"task": "text_to_image", "image": "img_1"},
        {"task": "similar"},
        {"task": "similar", "image": "img_1", "restore": "on"},
        {"edit_strength": 0.5},
        {"source_prompt": "a hill"},
        {"task": "similar", "image": "img_1", "source_guidance_scale": 2.0},
        {"task": "similar", "image": "img_1", "keep_unmasked": False},
    ],
)
def test_stages_that_make_no_sense_together_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        request(**fields)


EDIT = {"task": "edit", "image": "img_1"}


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt_mode": "verbatim"},
        {"source_prompt": "a hill"},
        {"prompt_mode": "verbatim", "source_prompt": " "},
        {"scheduler": "ddim"},
        {"guidance_rescale": 0.5},
        {"guidance_interval": [0.0, 0.5]},
        {"strength": 0.5},
        {"restore": "on"},
        {"outpaint": {"left": 8}},
        {"edit_strength": math.nextafter(MIN_EDIT_STRENGTH, 0)},
        {"edit_strength": 1.01},
    ],
)
def test_what_an_edit_cannot_be_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        request(**EDIT, **fields)


def test_an_edit_may_have_a_mask_and_in_verbatim_mode_has_both_captions() -> None:
    assert request(**EDIT, mask="img_2", edit_strength=MIN_EDIT_STRENGTH).mask == "img_2"
    assert request(**EDIT, scheduler="dpmpp_2m_sde", approve=True).approve
    verbatim = request(**EDIT, prompt_mode="verbatim", source_prompt="a hill")
    assert (verbatim.source_prompt, verbatim.instruction) == ("a hill", "a snowman")


@pytest.mark.parametrize("task", ["similar", "prompt"])
def test_a_picture_may_take_the_place_of_words(task: str) -> None:
    taken = GenerationRequest.model_validate({"task": task, "image": "img_1"})
    assert (taken.instruction, taken.image) == ("", "img_1")
    with pytest.raises(ValidationError):
        GenerationRequest.model_validate({"task": task, "image": "img_1", "instruction": " "})


@pytest.mark.parametrize(
    ("fields", "missing"),
    [
        ({"task": "similar"}, "image"),  # with it, words are not needed
        ({"task": "similar", "instruction": "x"}, "image"),
        ({"task": "prompt"}, "instruction"),
        ({"task": "edit", "instruction": "x"}, "image"),
        ({"task": "edit", "image": "img_1"}, "instruction"),
        ({}, "instruction"),
        ({"instruction": ""}, "instruction"),
    ],
)
def test_what_a_task_needs_is_named(fields: dict[str, str], missing: str) -> None:
    with pytest.raises(ValidationError) as caught:
        GenerationRequest.model_validate(fields)
    assert [(fault["loc"], fault["type"]) for fault in caught.value.errors()] == [((missing,), "missing")]


@pytest.mark.parametrize("image", ["", "x" * (MAX_IMAGE_CHARS + 1), 7, None, []], ids=lambda image: repr(image)[:20])
def test_a_picture_is_a_text_of_bounded_length(image: object) -> None:
    with pytest.raises(ValidationError):
        GenerationRequest.model_validate({"task": "similar", "image": image})


@pytest.mark.parametrize("interval", [[0, 1], [0.25, 0.75], [0.0, 5e-324]])
def test_an_interval_is_two_rising_shares(interval: list[float]) -> None:
    assert request(guidance_interval=interval).guidance_interval == tuple(interval)


@pytest.mark.parametrize(
    "interval", [[], [0.5], [0.5, 0.5], [0.75, 0.25], [-0.1, 1], [0, 1.1], [0, 0.5, 1], "01", [True, 1]]
)
def test_other_intervals_are_refused(interval: object) -> None:
    with pytest.raises(ValidationError):
        request(guidance_interval=interval)


def test_files_without_loss_have_no_compression() -> None:
    assert request(output_format="webp", output_compression=40).output_compression == 40
    with pytest.raises(ValidationError, match="'png' files lose nothing"):
        request(output_compression=40)
    with pytest.raises(ValidationError):
        request(output_format="webp", output_compression=101)


def test_an_instruction_is_all_that_is_needed() -> None:
    with pytest.raises(ValidationError):
        GenerationRequest.model_validate({})
    assert request().model_dump(exclude_defaults=True) == {"instruction": "a snowman"}


@given(
    st.fixed_dictionaries(
        {"instruction": st.text(min_size=1, max_size=50)},
        optional={
            "n": st.integers(0, 9),
            "seed": st.integers(-1, MAX_SEED),
            "guidance_scale": st.floats(),
            "guidance_interval": st.tuples(st.floats(0, 1), st.floats(0, 1)),
            "deadline_s": st.floats(),
            "size": st.sampled_from(["64x64", "2048x512", "63x64"]),
            "output_format": st.sampled_from([*OutputFormat]),
        },
    )
)
def test_what_is_taken_survives_the_wire(fields: dict[str, Any]) -> None:
    try:
        taken = GenerationRequest.model_validate(fields)
    except ValidationError:
        return
    text = taken.model_dump_json()
    assert GenerationRequest.model_validate_json(text) == taken
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_a_request_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        request().n = 2  # type: ignore[misc]  # that it is refused is the point


def test_the_schema_states_the_bounds() -> None:
    properties = GenerationRequest.model_json_schema()["properties"]
    assert properties["n"] | {"minimum": 1, "maximum": MAX_IMAGES} == properties["n"]
    assert properties["instruction"]["maxLength"] == MAX_INSTRUCTION_CHARS
    assert properties["image"]["anyOf"][0]["maxLength"] == MAX_IMAGE_CHARS
    assert properties["size"]["anyOf"][0]["examples"] == ["512x512"]
    assert properties["negative_prompt"]["maxLength"] == MAX_INSTRUCTION_CHARS


@pytest.mark.parametrize("output_format", OutputFormat)
def test_formats_have_media_types(output_format: OutputFormat) -> None:
    assert output_format.media_type == f"image/{output_format}"
