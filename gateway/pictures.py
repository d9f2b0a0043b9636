"""Pictures that clients send: looked at, made plain, kept, and referred to by their ids.

What is kept is a PNG of the upright sRGB pixels, so that nothing of the file that was sent goes on: no metadata, no
other frames, no surprise for the next decoder. The same pixels get the same id, whatever file they came in.
"""

import asyncio
from collections.abc import Callable

from shared.artifacts import ArtifactStore
from shared.contracts import FieldProblem, OutputFormat, UploadedImage
from shared.errors import InvalidRequest, NotFound
from shared.media import decode_image, encode_image, inline_bytes

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
        return await self._keep(lambda: data, tenant)

    async def keep_inline(self, text: str, *, tenant: str) -> UploadedImage:
        """Keep a picture that is given in base64 or as a data URI.

        Raises:
            InvalidImage: as for `keep`, or the text is neither.
            StoreUnavailable: it could not be stored.
        """
        return await self._keep(lambda: inline_bytes(text), tenant)

    async def id_of(self, image: str, *, tenant: str) -> str:
        """Return the id of a picture as requests give it: an id already, or inline.

        Raises:
            InvalidRequest: there is no picture of that id.
            InvalidImage, StoreUnavailable: as for `keep_inline`.
        """
        if not image.startswith(ID_PREFIX):
            return (await self.keep_inline(image, tenant=tenant)).id
        try:
            stored = await asyncio.to_thread(self._artifacts.touch, image, tenant=tenant)
        except NotFound:
            problem = FieldProblem(field="image", code="not_found", message="there is no picture of this id")
            raise InvalidRequest("The request names a picture that is not there.", errors=[problem]) from None
        return stored.id

    async def _keep(self, read: Callable[[], bytes], tenant: str) -> UploadedImage:
        async with self._slots:
            return await asyncio.to_thread(_store, self._artifacts, read, tenant)


def _store(artifacts: ArtifactStore, read: Callable[[], bytes], tenant: str) -> UploadedImage:
    pixels = decode_image(read())
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
