"""OpenAI's own clients, Python and Node, as they come, against the whole system."""

import base64
import io
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import BadRequestError, NotFoundError, OpenAI
from openai.types import ImageEditCompletedEvent, ImageGenCompletedEvent, ImageGenPartialImageEvent
from openai.types.chat import ChatCompletionMessageParam
from PIL import Image, ImageDraw

from tests.system import ANSWER_S, MODELS, System

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

NODE = Path(__file__).parent / "node"
INSTALL_S = 120.0
FEW: dict[str, Any] = {"num_inference_steps": 3, "seed": 7}


@pytest.fixture(scope="module")
def client(system: System) -> Iterator[OpenAI]:
    """Yield a client of the system."""
    with OpenAI(base_url=f"{system.run.url}/v1", api_key="none needed", timeout=ANSWER_S, max_retries=0) as client:
        yield client


def picture(data: str | None) -> Image.Image:
    """Return the picture in base64, which is one."""
    assert data is not None
    found = Image.open(io.BytesIO(base64.b64decode(data)))
    found.load()
    return found


def source() -> Image.Image:
    return Image.linear_gradient("L").convert("RGB").resize((128, 128))


def file_of(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def mask() -> Image.Image:
    """Return a mask of the source whose middle is to be repainted."""
    found = source().convert("RGBA")
    ImageDraw.Draw(found).rectangle((40, 40, 88, 88), fill=(0, 0, 0, 0))
    return found


def data_uri(image: Image.Image) -> str:
    return "data:image/png;base64," + base64.b64encode(file_of(image)).decode()


def test_words_become_a_picture(client: OpenAI) -> None:
    answer = client.images.generate(prompt="draw a snowman at night", n=2, output_format="jpeg", extra_body=FEW)
    assert answer.data is not None
    assert len(answer.data) == 2
    for one in answer.data:
        assert picture(one.b64_json).format == "JPEG"
        assert one.revised_prompt
    assert answer.usage is not None
    assert answer.usage.input_tokens > 0
    assert answer.usage.output_tokens > 0


def test_two_pictures_on_the_way_are_streamed_before_the_finished_one(client: OpenAI) -> None:
    events = list(
        client.images.generate(
            prompt="draw a snowman at night",
            stream=True,
            partial_images=2,
            extra_body={**FEW, "num_inference_steps": 40},
        )
    )
    *partials, last = events
    assert [one.partial_image_index for one in partials if isinstance(one, ImageGenPartialImageEvent)] == [0, 1]
    assert len(partials) == 2
    assert isinstance(last, ImageGenCompletedEvent)
    for one in events:
        assert picture(one.b64_json).format == "PNG"


def test_what_the_mask_leaves_see_through_is_repainted_and_nothing_else(client: OpenAI) -> None:
    (last,) = client.images.edit(
        image=file_of(source()), mask=file_of(mask()), prompt="a red ball", stream=True, extra_body=FEW
    )
    assert isinstance(last, ImageEditCompletedEvent)
    done = picture(last.b64_json).convert("RGB")
    assert done.size == (128, 128)
    assert done.crop((0, 0, 128, 20)).tobytes() == source().crop((0, 0, 128, 20)).tobytes()
    assert done.crop((50, 50, 78, 78)).tobytes() != source().crop((50, 50, 78, 78)).tobytes()


def test_picture_becomes_a_variation(client: OpenAI) -> None:
    with pytest.warns(DeprecationWarning, match="deprecated"):  # retired by OpenAI, and still in its client
        answer = client.images.create_variation(image=file_of(source()), response_format="url", extra_body=FEW)
    assert answer.data is not None
    (one,) = answer.data
    assert one.url is not None
    assert one.revised_prompt


def test_models_of_both_stages_are_listed(client: OpenAI) -> None:
    assert {model.id for model in client.models.list()} == set(MODELS)
    assert client.models.retrieve("llmga-tiny").id == "llmga-tiny"


def test_chat_about_a_picture_is_streamed_to_its_end(client: OpenAI) -> None:
    messages: list[ChatCompletionMessageParam] = [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "draw it at night"},
                {"type": "image_url", "image_url": {"url": data_uri(source())}},
            ],
        }
    ]
    stream = client.chat.completions.create(
        model="llmga-tiny", messages=messages, stream=True, stream_options={"include_usage": True}, temperature=0
    )
    *chunks, usage = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason in {"stop", "length"}
    assert usage.usage is not None
    assert usage.usage.completion_tokens > 0
    whole = client.chat.completions.create(model="llmga-tiny", messages=messages, temperature=0)
    assert whole.choices[0].message.content == text
    # What comes back is taken as part of the next turn.
    again: Any = [*messages, whole.choices[0].message.model_dump(), {"role": "user", "content": "and by day"}]
    assert client.chat.completions.create(model="llmga-tiny", messages=again, max_tokens=4)


@pytest.mark.parametrize("stream", [False, True])
def test_generation_prompt_of_a_chat_is_rendered(client: OpenAI, stream: bool) -> None:
    asked: dict[str, Any] = {
        "model": "llmga-tiny",
        "messages": [{"role": "user", "content": "draw a snowman at night"}],
        "temperature": 0,
        "extra_body": {"render": {**FEW, "size": "128x128"}},
    }
    if stream:
        deltas = [chunk.choices[0].delta for chunk in client.chat.completions.create(stream=True, **asked)]
        (images,) = [delta.images for delta in deltas if getattr(delta, "images", None)]
    else:
        images = client.chat.completions.create(**asked).choices[0].message.images
    (one,) = images
    kind, _, data = one["image_url"]["url"].partition(";base64,")
    assert kind == "data:image/png"
    assert picture(data).size == (128, 128)
    assert one["seed"] == 7
    assert one["url"].endswith(f"/v1/images/{one['id']}")


def test_refusals_are_the_client_s_own_exceptions(client: OpenAI) -> None:
    with pytest.raises(NotFoundError) as missing:
        client.chat.completions.create(model="gpt-5", messages=[{"role": "user", "content": "hi"}])
    assert missing.value.code == "model_not_found"
    with pytest.raises(BadRequestError) as refused:
        client.chat.completions.create(
            model="llmga-tiny",
            messages=[{"role": "user", "content": "hi"}],
            tools=[{"type": "x"}],  # type: ignore[list-item]  # to be refused
        )
    assert refused.value.param == "tools"
    with pytest.raises(BadRequestError) as address:
        client.chat.completions.create(
            model="llmga-tiny",
            messages=[
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x.png"}}]}
            ],
        )
    assert address.value.code == "invalid_image"


@pytest.fixture(scope="module")
def node_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the calls and OpenAI's Node client, installed as `package-lock.json` pins it."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("there is no Node.js here")
    folder = tmp_path_factory.mktemp("node") / "calls"
    shutil.copytree(NODE, folder)
    try:
        subprocess.run(
            ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"],
            cwd=folder,
            check=True,
            capture_output=True,
            timeout=INSTALL_S,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        pytest.skip("npm cannot install OpenAI's Node client here")
    return folder


def test_node_client_makes_every_call_and_sees_proper_exceptions(system: System, node_folder: Path) -> None:
    pictures = {"image": file_of(source()), "mask": file_of(mask())}
    done = subprocess.run(
        ["node", "calls.mjs", f"{system.run.url}/v1"],
        cwd=node_folder,
        input=json.dumps({name: base64.b64encode(data).decode() for name, data in pictures.items()}),
        env=os.environ | {"NO_PROXY": "*"},
        capture_output=True,
        text=True,
        timeout=ANSWER_S,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert results["generation"]["isPng"]
    assert results["generation"]["prompt"]
    assert [event["type"].partition(".")[2] for event in results["stream"]] == [
        "partial_image",
        "partial_image",
        "completed",
    ]
    assert all(event["isPng"] for event in results["stream"])
    assert [event.get("index") for event in results["stream"]] == [0, 1, None]
    assert results["edit"]["isPng"]
    assert results["variation"]["url"].startswith(system.run.url)
    assert set(results["models"]) == set(MODELS)
    assert results["chat"]["text"]
    assert results["chat"]["end"] in {"stop", "length"}
    assert [(one["kind"], one["status"], one["code"]) for one in results["refusals"]] == [
        ("BadRequestError", 400, "invalid_request"),
        ("NotFoundError", 404, "model_not_found"),
        ("NotFoundError", 404, "model_not_found"),
        ("APIError", 413, "body_too_large"),
    ]
