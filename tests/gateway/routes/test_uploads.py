"""`POST /v1/images`: pictures are made plain, kept once, and found again by their ids."""

import io
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from shared.contracts import UploadedImage
from shared.media import decode_image
from tests.gateway.conftest import House
from tests.gateway.pictures import base64_of, file_of, pixels_of


async def _upload(http: httpx.AsyncClient, data: bytes, media_type: str = "image/png") -> httpx.Response:
    return await http.post("/v1/images", content=data, headers={"Content-Type": media_type})


@pytest.mark.parametrize("media_type", ["image/png", "image/jpeg", "application/octet-stream"])
async def test_uploaded_picture_can_be_fetched_and_has_the_pixels_that_were_sent(house: House, media_type: str) -> None:
    pixels = pixels_of()
    response = await _upload(house.http, file_of(pixels), media_type)  # the content decides, not the name
    assert response.status_code == 201
    kept = UploadedImage.model_validate(response.json())
    assert (kept.width, kept.height, kept.media_type) == (24, 16, "image/png")
    assert response.headers["location"] == kept.url
    fetched = await house.http.get(kept.url)
    assert len(fetched.content) == kept.bytes
    assert fetched.headers["etag"] == f'"{kept.sha256}"'
    assert np.array_equal(decode_image(fetched.content), pixels)


async def test_same_pixels_have_one_id_whatever_file_and_form_they_come_in(house: House) -> None:
    pixels = pixels_of()
    png, webp = file_of(pixels), file_of(pixels, "WEBP")
    ids = {(await _upload(house.http, data)).json()["id"] for data in (png, webp)}
    for text in (base64_of(png), f"data:image/webp;base64,{base64_of(webp)}"):
        ids.add((await house.http.post("/v1/images", json={"image": text})).json()["id"])
    assert len(ids) == 1


async def test_metadata_do_not_go_on_and_the_picture_is_upright(house: House) -> None:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned
    exif[0x010E] = "secret place"
    Image.fromarray(pixels_of(24, 16)).save(file, "JPEG", exif=exif)
    assert b"secret place" in file.getvalue()
    kept = UploadedImage.model_validate((await _upload(house.http, file.getvalue())).json())
    assert (kept.width, kept.height) == (16, 24)
    assert b"secret place" not in (await house.http.get(kept.url)).content


@pytest.mark.parametrize(
    "data",
    [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n", file_of(pixels_of())[:-20], b"<svg/>", b"BM" + b"\x00" * 60],
    ids=lambda data: str(data[:8]),
)
async def test_file_that_is_no_picture_is_refused_and_nothing_is_kept(
    house: House, tmp_path: Path, data: bytes
) -> None:
    response = await _upload(house.http, data)
    assert (response.status_code, response.json()["code"]) == (422, "invalid_image")
    assert "PIL" not in response.text
    assert not [path for path in (tmp_path / "artifacts").rglob("*") if path.name.startswith("img_")]


@pytest.mark.parametrize("body", [{}, {"image": ""}, {"image": 3}, {"image": "AAAA", "name": "x"}])
async def test_json_without_the_one_field_is_refused(house: House, body: dict[str, object]) -> None:
    response = await house.http.post("/v1/images", json=body)
    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")


@pytest.mark.parametrize("image", ["http://127.0.0.1/a.png", "file:///etc/passwd", "img_" + "0" * 40, "data:,x", "é"])
async def test_text_that_holds_no_file_is_refused(house: House, image: str) -> None:
    response = await house.http.post("/v1/images", json={"image": image})
    assert (response.status_code, response.json()["code"]) == (422, "invalid_image")


async def test_form_is_not_taken(house: House) -> None:
    response = await house.http.post("/v1/images", files={"image": file_of(pixels_of())})
    assert (response.status_code, response.json()["code"]) == (415, "unsupported_media_type")
