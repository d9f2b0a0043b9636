"""UNet calls of one request alone, without an engine."""

from services.diffusion.encoding import encode_source
from services.diffusion.loading import LoadedModel
from services.diffusion.phases import Request
from services.diffusion.stages import encode_prompts
from services.diffusion.unet import predict


def call(request: Request, model: LoadedModel) -> None:
    """Make the next call."""
    if request.wants_source:
        encode_source(request, model)
    if request.wants_prompts:
        encode_prompts(request, model)
    assert request.phase is not None
    rows = request.phase.rows(request.latents)
    bucket = next(size for size in model.buckets.stable if size >= len(rows.sample))
    ((noise_pred, _),) = predict(model, [rows], bucket)
    request.accept(noise_pred)
