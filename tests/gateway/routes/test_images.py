"""`GET /v1/images/{id}`: the file, its headers, and conditional requests."""

import hashlib

import httpx
import pytest

from shared.contracts import ImageResult, Job
from tests.gateway.conftest import House


async def _image(house: House, output_format: str = "png") -> ImageResult:
    response = await house.http.post(
        "/v1/generations",
        json={"instruction": "a", "prompt_mode": "verbatim", "output_format": output_format},
        headers={"Prefer": "wait=60"},
    )
    return Job.model_validate(response.json()).images[0]


@pytest.mark.parametrize(
    ("output_format", "extension", "magic"),
    [("png", "png", b"\x89PNG"), ("jpeg", "jpg", b"\xff\xd8"), ("webp", "webp", b"RIFF")],
)
async def test_picture_comes_with_its_type_name_and_hash(
    house: House, output_format: str, extension: str, magic: bytes
) -> None:
    image = await _image(house, output_format)
    response = await house.http.get(image.url)
    assert response.status_code == 200
    assert response.content.startswith(magic)
    assert hashlib.sha256(response.content).hexdigest() == image.sha256
    assert response.headers["content-type"] == image.media_type == f"image/{output_format}"
    assert response.headers["etag"] == f'"{image.sha256}"'
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "immutable" in response.headers["cache-control"]
    name = f"llmga-{image.id.removeprefix('img_')[:12]}.{extension}"
    assert response.headers["content-disposition"] == f'inline; filename="{name}"'


async def test_head_gives_the_headers_only(house: House) -> None:
    image = await _image(house)
    full, head = await house.http.get(image.url), await house.http.head(image.url)
    assert head.status_code == 200
    assert head.content == b""
    assert head.headers["content-length"] == full.headers["content-length"] == str(image.bytes)
    assert head.headers["etag"] == full.headers["etag"]


async def test_copy_that_is_current_is_not_sent_again(house: House) -> None:
    image = await _image(house)
    tag = f'"{image.sha256}"'
    for held in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        response = await house.http.get(image.url, headers={"If-None-Match": held})
        assert response.status_code == 304
        assert response.content == b""
        assert response.headers["etag"] == tag
    assert (await house.http.get(image.url, headers={"If-None-Match": '"other"'})).status_code == 200


@pytest.mark.parametrize("image_id", ["img_" + "0" * 40, "x", "..%2f..%2fetc%2fpasswd", "%00", "img_" + "0" * 4000])
async def test_picture_that_does_not_exist_is_not_found(http: httpx.AsyncClient, image_id: str) -> None:
    response = await http.get(f"/v1/images/{image_id}")
    assert response.status_code == 404
    assert response.json()["code"] == "not_found"
