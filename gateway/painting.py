"""What a request for painting in part needs of its pictures, checked before it becomes a job."""

from gateway.decoder import Decoder
from shared.artifacts import ArtifactStore
from shared.contracts import GenerationRequest
from shared.media import check_canvas, read_header


def check_painting(request: GenerationRequest, artifacts: ArtifactStore, decoder: Decoder, *, tenant: str) -> None:
    """Refuse a mask or an extension that does not fit the request's picture; `image` and `mask` are ids by now.

    Reads and waits for the decoder, so call it from a worker thread.

    Raises:
        InvalidRequest: the mask is of another size, or paints nothing, or the extended picture would be too large.
        NotFound: a picture has gone this moment.
    """
    if request.image is None or (request.mask is None and request.outpaint is None):
        return
    data, _ = artifacts.get(request.image, tenant=tenant)
    header = read_header(data)
    if request.outpaint is not None:
        check_canvas(header.width, header.height, request.outpaint)
    if request.mask is not None:
        data, _ = artifacts.get(request.mask, tenant=tenant)
        decoder.check_mask(data, header.width, header.height)
