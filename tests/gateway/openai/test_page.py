"""docs/openai.md lists every field that there is, and its examples run."""

import asyncio
import re
import sys
from pathlib import Path

from gateway.openai.chat_shapes import ChatBody
from gateway.openai.image_answers import ImagesAnswer
from gateway.openai.image_requests import ImageBody, VariationOptions
from tests.gateway.conftest import House

TEXT = (Path(__file__).parents[3] / "docs" / "openai.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def section(title: str) -> str:
    """Return what stands under a heading."""
    found = re.search(rf"^##+ {title}\n(.*?)(?=^##+ |\Z)", TEXT, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


def fields(text: str) -> set[str]:
    """Return the code words in the first columns of the tables of a text."""
    return {
        word
        for line in text.splitlines()
        if line.startswith("| ")
        for word in re.findall(r"`(\w+)`", line.split("|")[1])
    }


def test_every_field_is_listed() -> None:
    asked, _, answered = section("Pictures from words").partition("The answer:")
    assert fields(asked) == set(ImageBody.model_fields)
    assert fields(answered) == set(ImagesAnswer.model_fields)
    assert fields(section("Chat")) == set(ChatBody.model_fields)
    assert set(VariationOptions.model_fields) < set(re.findall(r"`(\w+)`", section("Variations")))


async def test_examples_run_as_they_stand(house: House) -> None:
    assert len(EXAMPLES) == 3
    script = "".join(EXAMPLES).replace("http://127.0.0.1:8080", house.url)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    said, complaints = await process.communicate()
    assert process.returncode == 0, complaints.decode()
    lines = said.decode().splitlines()
    assert lines[0] == "a picture of (draw a snowman at night)"
    assert [line.split()[0] for line in lines[1:4]] == ["image_generation.partial_image"] * 2 + [
        "image_generation.completed"
    ]
    assert lines[-1] == "128x128"
