"""`POST /v1/images` and `GET /v1/images/{id}`: pictures in, pictures out.

An id names its bytes, so an answer may be cached for ever, and a picture that is sent twice is kept once.
"""

import asyncio
from email.utils import formatdate

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from gateway import documentation
from gateway.backend import backend_of
from gateway.json_body import read_model
from gateway.submission import count_request
from shared.contracts.generation import Image
from shared.errors import UnsupportedMediaType

_EXTENSIONS = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}
_FILE_TYPES = frozenset({*_EXTENSIONS, "application/octet-stream"})  # the content decides which of them it is

router = APIRouter(tags=["images"])


class Upload(BaseModel):
    """A picture in JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: Image = Field(description="A PNG, JPEG or WebP file in base64 or as a data URI.")


@router.post("/v1/images", **documentation.UPLOAD_IMAGE)
async def upload_image(request: Request) -> Response:
    """Keep a picture, so that requests can refer to it by its id."""
    backend = backend_of(request)
    pictures, tenant = backend.pictures, backend.caller.tenant
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == "application/json":
        upload, _ = await read_model(request, Upload)
        await count_request(backend)
        kept = await pictures.keep(upload.image, tenant=tenant)
    elif media_type in _FILE_TYPES:
        await count_request(backend)
        kept = await pictures.keep(await request.body(), tenant=tenant)
    else:
        raise UnsupportedMediaType(
            "A picture comes as a file, or in JSON.",
            next_step="Send `Content-Type: image/png`, `image/jpeg` or `image/webp` and the file, "
            "or `application/json` and `image`.",
        )
    headers = {"Location": kept.url, "Cache-Control": "no-store"}
    return Response(kept.model_dump_json(), 201, headers, media_type="application/json")


@router.api_route("/v1/images/{image_id}", methods=["GET", "HEAD"], **documentation.GET_IMAGE)
async def get_image(request: Request, image_id: str) -> Response:
    """Return the picture's file."""
    backend = backend_of(request)
    data, stored = await asyncio.to_thread(backend.artifacts.get, image_id, tenant=backend.caller.tenant)
    etag = f'"{stored.sha256}"'
    headers = {
        "ETag": etag,
        "Last-Modified": formatdate(stored.created_at, usegmt=True),
        "Cache-Control": "private, max-age=31536000, immutable",
        "Content-Disposition": f'inline; filename="{_file_name(stored.id, stored.media_type)}"',
    }
    if _matches(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    return Response(data, 200, headers, media_type=stored.media_type)


def _file_name(image_id: str, media_type: str) -> str:
    return f"llmga-{image_id.removeprefix('img_')[:12]}.{_EXTENSIONS.get(media_type, 'bin')}"


def _matches(if_none_match: str | None, etag: str) -> bool:
    """Compare weakly, as RFC 9110 §13.1.2 asks."""
    if if_none_match is None:
        return False
    tags = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    return "*" in tags or etag in tags
