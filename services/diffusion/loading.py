"""Checkpoints in memory: explicit classes, safetensors, one dtype, one device."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from services.diffusion.adapters import AdapterFile, Adapters
from services.diffusion.batching import Buckets
from services.diffusion.checkpoints import (
    SECOND_ENCODER,
    SECOND_TOKENIZER,
    TIME_IDS,
    CheckpointFiles,
    UnfitCheckpoint,
)
from services.diffusion.conditioning.encoder import PromptEncoder, TokenizerVocabulary
from services.diffusion.convolutions import by_onednn
from services.diffusion.libraries import (
    AutoencoderKL,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    UNet2DConditionModel,
    quiet,
)
from services.diffusion.offload import Offload, offload
from services.diffusion.pictures import LATENT_PX
from services.diffusion.previews import LinearMap, Previewer
from services.diffusion.quantization import BYTES_PER_WEIGHT, Quantization, quantize

_log = logging.getLogger("llmga.diffusion")


@dataclass(slots=True)
class LoadedModel:
    """A checkpoint that can be asked; everything that holds weights belongs to the device thread."""

    name: str
    files: CheckpointFiles
    device: torch.device
    dtype: torch.dtype
    unet: Any
    vae: Any
    vocabulary: TokenizerVocabulary
    encoder: PromptEncoder
    buckets: Buckets
    text_encoders: tuple[Any, ...]
    adapters: Adapters
    bytes: int  # of all weights
    previewer: Previewer
    second_vocabulary: TokenizerVocabulary | None = None  # SDXL
    kernels: tuple[str, ...] = ()  # what it is computed with beside plain torch: they decide the last bits

    @property
    def side_px(self) -> int:
        """The model's own side in pixels."""
        return self.files.sample_size * LATENT_PX

    @property
    def unet_channels(self) -> int:
        """Channels that the UNet takes: the latents' own, or those with mask and masked picture beside them."""
        return int(self.files.unet["in_channels"])

    @property
    def guidance_channels(self) -> int | None:
        """The UNet's input for a guidance scale, where it was distilled to have one."""
        channels: int | None = self.files.unet.get("time_cond_proj_dim")
        return channels

    @property
    def pooled_channels(self) -> int | None:
        """Channels of the pooled prompt that SDXL's UNet takes."""
        if self.files.kind != "sdxl":
            return None
        unet = self.files.unet
        return int(unet["projection_class_embeddings_input_dim"]) - TIME_IDS * int(unet["addition_time_embed_dim"])


def load(
    name: str,
    files: CheckpointFiles,
    *,
    device: torch.device,
    dtype: torch.dtype,
    buckets: Buckets,
    previewer: Previewer | None = None,
    quantization: Quantization = "none",
    adapters: Sequence[AdapterFile] = (),
    offloading: Offload = "none",
) -> LoadedModel:
    """Load an inspected checkpoint with adapters that fit it.

    Without a `previewer`, one is fitted to its autoencoder.

    Raises:
        UnfitCheckpoint: the weights are not those that the configurations describe.
    """
    quiet()
    home = device if offloading == "none" else torch.device("cpu")
    unet = _part(UNet2DConditionModel, files, "unet", home, dtype, quantization)
    vae = _part(AutoencoderKL, files, "vae", home, vae_dtype(files, dtype))
    if device.type == "cpu":
        vae.to(memory_format=torch.channels_last)  # a picture is decoded in three quarters of the time
    text_encoder = _part(CLIPTextModel, files, "text_encoder", home, dtype, quantization)
    vocabulary = _vocabulary(files, "tokenizer", text_encoder)
    second = second_vocabulary = None
    if files.kind == "sdxl":
        second = _part(CLIPTextModelWithProjection, files, SECOND_ENCODER, home, dtype, quantization)
        second_vocabulary = _vocabulary(files, SECOND_TOKENIZER, second)
    text_encoders = tuple(encoder for encoder in (text_encoder, second) if encoder is not None)
    attached = Adapters(files, unet, text_encoders, adapters)
    if device.type == "cpu":
        by_onednn(unet)
    previewer = previewer or LinearMap.fit(vae).to(device)  # before a hook may move the autoencoder
    offload(unet, (vae, *text_encoders), offloading, device)
    _log.info("loaded", extra={"model": name, "sha256": files.sha256, "dtype": str(dtype), "device": str(device)})
    return LoadedModel(
        name=name,
        files=files,
        device=device,
        dtype=dtype,
        unet=unet,
        vae=vae,
        vocabulary=vocabulary,
        encoder=PromptEncoder(text_encoder, device, dtype, second=second),
        buckets=buckets,
        text_encoders=text_encoders,
        adapters=attached,
        bytes=sum(map(weight_bytes, (unet, vae, *text_encoders))),
        previewer=previewer,
        second_vocabulary=second_vocabulary,
        kernels=() if quantization == "none" else (quantization,),
    )


def vae_dtype(files: CheckpointFiles, dtype: torch.dtype) -> torch.dtype:
    """Return the number format of the autoencoder beside a UNet of this one."""
    return torch.float32 if dtype is torch.float16 and files.upcasts_vae else dtype


def expected_bytes(files: CheckpointFiles, dtype: torch.dtype, quantization: Quantization = "none") -> int:
    """Return about how many bytes a checkpoint's weights will take."""
    total = 0.0
    for part, numbers in files.numbers.items():
        if part == "vae":
            total += numbers.total * vae_dtype(files, dtype).itemsize
        else:
            rounded = 0 if quantization == "none" else numbers.in_matrices
            total += (numbers.total - rounded) * dtype.itemsize + rounded * BYTES_PER_WEIGHT[quantization]
    return int(total)


def weight_bytes(module: Any) -> int:
    """Return the bytes of a module's tensors."""
    tensors = [*module.parameters(), *module.buffers()]
    states = [state for tensor in tensors if (state := getattr(tensor, "quant_state", None)) is not None]
    return sum(tensor.nbytes for tensor in (*tensors, *(state.absmax for state in states)))


def _vocabulary(files: CheckpointFiles, part: str, text_encoder: Any) -> TokenizerVocabulary:
    tokenizer = CLIPTokenizer.from_pretrained(files.folder / part, local_files_only=True)
    highest = max(tokenizer.get_vocab().values())
    if highest >= text_encoder.config.vocab_size:
        raise UnfitCheckpoint(
            f"{files.folder / part} has ids up to {highest}, but the text encoder has "
            f"{text_encoder.config.vocab_size} embeddings: the parts are of different checkpoints"
        )
    return TokenizerVocabulary(tokenizer)


def _part(
    part_class: Any,
    files: CheckpointFiles,
    part: str,
    device: torch.device,
    dtype: torch.dtype,
    quantization: Quantization = "none",
) -> Any:
    folder = files.folder / part
    try:
        model, report = part_class.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **{
                "dtype" if part.startswith("text_encoder") else "torch_dtype": dtype
            },  # transformers' name and diffusers'
        )
    except Exception as error:  # whatever the library found wrong with them
        raise UnfitCheckpoint(f"{folder}: the weights do not fit config.json; copy the folder again") from error
    absent = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if absent:
        raise UnfitCheckpoint(
            f"{folder}: {len(absent)} weights are missing or of another shape ({absent[0]}, …); copy the folder again"
        )
    quantize(model, quantization, dtype)
    return model.to(device).eval().requires_grad_(False)
