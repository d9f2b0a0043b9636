"""Pictures that clients send: looked at, made plain, kept, and referred to by their ids.

What is kept is a PNG of the upright sRGB pixels, so that nothing of the file that was sent goes on: no metadata, no
other frames, no surprise for the next decoder. The same pixels get the same id, whatever file they came in.
"""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress

from gateway.decoder import Decoded, Decoder
from gateway.painting import check_painting
from shared.artifacts import ArtifactStore
from shared.contracts import FieldProblem, GenerationRequest, OutputFormat, UploadedImage
from shared.errors import InvalidRequest, NotFound

ID_PREFIX = "img_"  # "_" is no letter of base64
MAX_AT_ONCE = 2  # decoded pictures; the largest takes most of a second of a core


class Pictures:
    """Takes pictures in."""

    def __init__(self, artifacts: ArtifactStore, decoder: Decoder) -> None:
        self._artifacts = artifacts
        self._decoder = decoder
        self._slots = asyncio.Semaphore(MAX_AT_ONCE)

    async def keep(self, picture: bytes | str, *, tenant: str) -> UploadedImage:
        """Keep a picture: a PNG, JPEG or WebP file, or the text of one in base64 or as a data URI.

        Raises:
            InvalidImage: it is something else, is damaged, or exceeds a limit.
            StoreUnavailable: it could not be stored.
            Overloaded: it could not be decoded in time.
        """
        return await self._keep(lambda: self._decoder.plain(picture), tenant)

    async def keep_mask(self, data: bytes, *, tenant: str, field: str) -> UploadedImage:
        """Keep what is see-through in a picture as a mask (`Decoder.hole`).

        Raises:
            InvalidRequest: nothing in it is see-through.
            InvalidImage, StoreUnavailable, Overloaded: as for `keep`.
        """
        return await self._keep(lambda: self._decoder.hole(data, field), tenant)

    async def _keep(self, decode: Callable[[], Decoded], tenant: str) -> UploadedImage:
        async with self._slots:
            return await asyncio.to_thread(lambda: _store(self._artifacts, decode(), tenant))

    async def plain(self, text: str) -> bytes:
        """Return an inline picture as a plain PNG file, without keeping it.

        Raises:
            InvalidImage, Overloaded: as for `keep`.
        """
        async with self._slots:
            return (await asyncio.to_thread(self._decoder.plain, text)).data

    async def check(self, request: GenerationRequest, *, tenant: str) -> None:
        """Refuse a mask or an extension that does not fit the request's picture (`check_painting`)."""
        async with self._slots:
            await asyncio.to_thread(check_painting, request, self._artifacts, self._decoder, tenant=tenant)

    async def keep_on(self, image_ids: Iterable[str], *, tenant: str) -> None:
        """Let pictures be kept from now on for as long as pictures are; those that are gone stay gone."""
        await asyncio.to_thread(_touch_all, self._artifacts, list(image_ids), tenant)

    async def id_of(self, image: str, *, tenant: str, field: str = "image") -> str:
        """Return the id of a picture as requests give it in a field: an id already, or inline.

        Raises:
            InvalidRequest: there is no picture of that id.
            InvalidImage, StoreUnavailable, Overloaded: as for `keep`.
        """
        if not image.startswith(ID_PREFIX):
            return (await self.keep(image, tenant=tenant)).id
        try:
            stored = await asyncio.to_thread(self._artifacts.touch, image, tenant=tenant)
        except NotFound:
            problem = FieldProblem(field=field, code="not_found", message="there is no picture of this id")
            raise InvalidRequest("The request names a picture that is not there.", errors=[problem]) from None
        return stored.id


def _touch_all(artifacts: ArtifactStore, image_ids: list[str], tenant: str) -> None:
    for image_id in image_ids:
        with suppress(NotFound):
            artifacts.touch(image_id, tenant=tenant)


def _store(artifacts: ArtifactStore, picture: Decoded, tenant: str) -> UploadedImage:
    stored = artifacts.put(
        picture.data,
        OutputFormat.PNG.media_type,
        tenant=tenant,
        metadata={"width": picture.width, "height": picture.height},
    )
    return UploadedImage(
        id=stored.id,
        url=f"/v1/images/{stored.id}",
        media_type=stored.media_type,
        width=picture.width,
        height=picture.height,
        bytes=stored.bytes,
        sha256=stored.sha256,
    )
