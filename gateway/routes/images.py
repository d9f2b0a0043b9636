"""`GET /v1/images/{id}`: finished pictures. An id names its bytes, so an answer may be cached for ever."""

import asyncio
from email.utils import formatdate

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway import documentation
from gateway.backend import backend_of
from shared.jobs import DEFAULT_TENANT

_EXTENSIONS = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}

router = APIRouter(tags=["images"])


@router.api_route("/v1/images/{image_id}", methods=["GET", "HEAD"], **documentation.GET_IMAGE)
async def get_image(request: Request, image_id: str) -> Response:
    """Return the picture's file."""
    store = backend_of(request).artifacts
    data, stored = await asyncio.to_thread(store.get, image_id, tenant=DEFAULT_TENANT)
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
