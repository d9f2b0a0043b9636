"""Pictures that clients send: looked at, made plain, kept, and referred to by their ids.

What is kept is a PNG of the upright sRGB pixels, so that nothing of the file that was sent goes on: no metadata, no
other frames, no surprise for the next decoder. The same pixels get the same id, whatever file they came in.
"""

import asyncio
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from gateway.painting import check_painting
from shared.artifacts import ArtifactStore
from shared.contracts import FieldProblem, GenerationRequest, OutputFormat, UploadedImage
from shared.errors import InvalidRequest, NotFound
from shared.media import decode_image, encode_image, inline_bytes

Pixels = npt.NDArray[np.uint8]

ID_PREFIX = "img_"  # "_" is no letter of base64
MAX_AT_ONCE = 2  # decoded pictures; the largest takes 50 MB and most of a second


class Pictures:
    """Takes pictures in."""

    def __init__(self, artifacts: ArtifactStore) -> None:
        self._artifacts = artifacts
        self._slots = asyncio.Semaphore(MAX_AT_ONCE)

    async def keep(self, data: bytes, *, tenant: str) -> UploadedImage:
        """Keep the picture of a PNG, JPEG or WebP file.

        Raises:
            InvalidImage: it is something else, is damaged, or exceeds a limit.
            StoreUnavailable: it could not be stored.
        """
        return await self.keep_made(lambda: decode_image(data), tenant=tenant)

    async def keep_inline(self, text: str, *, tenant: str) -> UploadedImage:
        """Keep a picture that is given in base64 or as a data URI.

        Raises:
            InvalidImage: as for `keep`, or the text is neither.
            StoreUnavailable: it could not be stored.
        """
        return await self.keep_made(lambda: decode_image(inline_bytes(text)), tenant=tenant)

    async def keep_made(self, make: Callable[[], Pixels], *, tenant: str) -> UploadedImage:
        """Keep the pixels that `make` makes beside the event loop, when there is room for them.

        Raises:
            StoreUnavailable: they could not be stored; also whatever `make` raises.
        """
        async with self._slots:
            return await asyncio.to_thread(_store, self._artifacts, make, tenant)

    async def plain(self, text: str) -> bytes:
        """Return an inline picture as a plain PNG file, without keeping it.

        Raises:
            InvalidImage: as for `keep_inline`.
        """
        async with self._slots:
            return await asyncio.to_thread(_png, lambda: decode_image(inline_bytes(text)))

    async def check(self, request: GenerationRequest, *, tenant: str) -> None:
        """Refuse a mask or an extension that does not fit the request's picture (`check_painting`)."""
        async with self._slots:
            await asyncio.to_thread(check_painting, request, self._artifacts, tenant=tenant)

    async def id_of(self, image: str, *, tenant: str, field: str = "image") -> str:
        """Return the id of a picture as requests give it in a field: an id already, or inline.

        Raises:
            InvalidRequest: there is no picture of that id.
            InvalidImage, StoreUnavailable: as for `keep_inline`.
        """
        if not image.startswith(ID_PREFIX):
            return (await self.keep_inline(image, tenant=tenant)).id
        try:
            stored = await asyncio.to_thread(self._artifacts.touch, image, tenant=tenant)
        except NotFound:
            problem = FieldProblem(field=field, code="not_found", message="there is no picture of this id")
            raise InvalidRequest("The request names a picture that is not there.", errors=[problem]) from None
        return stored.id


def _png(make: Callable[[], Pixels]) -> bytes:
    return encode_image(make(), OutputFormat.PNG, {})


def _store(artifacts: ArtifactStore, make: Callable[[], Pixels], tenant: str) -> UploadedImage:
    pixels = make()
    height, width, _ = pixels.shape
    stored = artifacts.put(
        encode_image(pixels, OutputFormat.PNG, {}),
        OutputFormat.PNG.media_type,
        tenant=tenant,
        metadata={"width": width, "height": height},
    )
    return UploadedImage(
        id=stored.id,
        url=f"/v1/images/{stored.id}",
        media_type=stored.media_type,
        width=width,
        height=height,
        bytes=stored.bytes,
        sha256=stored.sha256,
    )
