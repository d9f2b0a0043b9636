"""CLIP over token ids, on the device thread, with a cache of what was encoded lately.

Every piece of 77 tokens is encoded alone: a prompt's embedding never depends on what was encoded beside it.
The cache is by piece, so a negative prompt in its longer form, or a prompt with other weights, costs nothing.
"""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Any, NamedTuple

import torch

from services.diffusion.conditioning.prompts import Tokenized

CACHE_BYTES = 64 << 20  # SD1.5, 16 bits: 560 pieces

_Key = tuple[bool, int, Hashable, tuple[int, ...]]  # second encoder or not, clip skip, adapters, token ids


class TokenizerVocabulary:
    """A `Vocabulary` over transformers' CLIP tokenizer; safe to use from several threads."""

    def __init__(self, tokenizer: Any) -> None:
        self._backend = tokenizer.backend_tokenizer
        self.begin: int = tokenizer.bos_token_id
        self.end: int = tokenizer.eos_token_id
        self.pad: int = tokenizer.pad_token_id

    def ids(self, text: str) -> list[int]:
        """Return the content tokens of the text."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids


class Embedding(NamedTuple):
    """What a prompt is to the UNet: (tokens, channels), and SDXL's pooled vector (channels,)."""

    tokens: torch.Tensor
    pooled: torch.Tensor | None = None

    def zeros(self) -> "Embedding":
        """Return the embedding that stands for no prompt where a checkpoint wants zeros."""
        return Embedding(torch.zeros_like(self.tokens), None if self.pooled is None else torch.zeros_like(self.pooled))


class PromptEncoder:
    """Embeddings of tokenized prompts; belongs to the device thread.

    With a second text encoder it is SDXL's: the last but one hidden state of both, side by side, and the pooled
    vector of the second for the last piece.
    """

    def __init__(
        self,
        text_encoder: Any,
        device: torch.device,
        dtype: torch.dtype,
        *,
        second: Any = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._text_encoder = text_encoder
        self._second = second
        self._device = device
        self._dtype = dtype
        self._cache: OrderedDict[_Key, Embedding] = OrderedDict()
        self._cache_bytes = cache_bytes
        self._cached_bytes = 0
        self.calls = 0
        # SDXL reads the last but one state anyway; one layer at least is left of every encoder.
        kept = 1 if second is None else 2
        self.max_clip_skip = min(one.config.num_hidden_layers for one in (text_encoder, second or text_encoder)) - kept

    def encode(self, prompt: Tokenized, clip_skip: int = 0, adapters: Hashable = ()) -> Embedding:
        """Return the embedding (tokens, channels) in the UNet's dtype, without the text encoder's last layers.

        `adapters`: those that are in force; what was encoded under others is another embedding.
        """
        state = (clip_skip, adapters)
        pieces = [self._piece(ids, clip_skip, (False, *state, ids)).tokens for ids in prompt.chunks]
        embedding = torch.cat(_joined(pieces) if prompt.is_joined else pieces)
        if prompt.weights is not None:
            embedding = apply_weights(embedding, torch.tensor(prompt.weights, device=self._device))
        if self._second is None:
            return Embedding(embedding.to(self._dtype))
        assert prompt.second is not None, "prompts for SDXL are tokenized twice"
        others = [self._piece(ids, clip_skip, (True, *state, ids)) for ids in prompt.second]
        tokens = [piece.tokens for piece in others]
        other = torch.cat(_joined(tokens) if prompt.is_joined else tokens)
        pooled = others[-1].pooled
        assert pooled is not None
        return Embedding(torch.cat([embedding, other], dim=-1).to(self._dtype), pooled.to(self._dtype))

    def _piece(self, ids: tuple[int, ...], clip_skip: int, key: _Key) -> Embedding:
        is_second = key[0]
        found = self._cache.get(key)
        if found is not None:
            self._cache.move_to_end(key)
            return found
        self.calls += 1
        asked = torch.tensor([ids], device=self._device)
        if self._second is None and clip_skip == 0:
            piece = Embedding(self._text_encoder(asked)[0][0])  # the last hidden state, behind the final layer norm
        elif self._second is None:
            states = self._text_encoder(asked, output_hidden_states=True).hidden_states
            # As diffusers: the final layer norm belongs to whatever state is taken.
            piece = Embedding(_final_norm(self._text_encoder)(states[-(clip_skip + 1)])[0])
        else:
            encoder = self._second if is_second else self._text_encoder
            output = encoder(asked, output_hidden_states=True)
            piece = Embedding(output.hidden_states[-(clip_skip + 2)][0], output[0][0] if is_second else None)
        self._cache[key] = piece
        self._cached_bytes += _bytes(piece)
        while len(self._cache) > 1 and self._cached_bytes > self._cache_bytes:
            self._cached_bytes -= _bytes(self._cache.popitem(last=False)[1])
        return piece


def _final_norm(text_encoder: Any) -> Any:
    # transformers has moved the layers of CLIP's text encoder out of `text_model`.
    return getattr(text_encoder, "text_model", text_encoder).final_layer_norm


def _joined(pieces: list[torch.Tensor]) -> list[torch.Tensor]:
    """Leave out the begin and end tokens between two pieces."""
    last = len(pieces) - 1
    return [piece[(index > 0) : (None if index == last else -1)] for index, piece in enumerate(pieces)]


def _bytes(piece: Embedding) -> int:
    return sum(tensor.nbytes for tensor in piece if tensor is not None)


def apply_weights(embedding: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weigh an embedding (tokens, channels) by token and give it back its mean (LLMGA.md §5.1).

    Both means are over tokens and channels, computed in float32 and cast back.
    """
    weighted = embedding * weights[:, None].to(embedding.dtype)
    before = embedding.float().mean().to(embedding.dtype)
    after = weighted.float().mean().to(embedding.dtype)
    return weighted * (before / after)
