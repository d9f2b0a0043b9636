"""CLIP over token ids, on the device thread, with a cache of what was encoded lately.

Every piece of 77 tokens is encoded alone: a prompt's embedding never depends on what was encoded beside it.
The cache is by piece, so a negative prompt in its longer form, or a prompt with other weights, costs nothing.
"""

from collections import OrderedDict
from typing import Any

import torch

from services.diffusion.conditioning.prompts import Tokenized

CACHE_BYTES = 64 << 20  # SD1.5, 16 bits: 560 pieces


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


class PromptEncoder:
    """Embeddings of tokenized prompts; belongs to the device thread."""

    def __init__(
        self, text_encoder: Any, device: torch.device, dtype: torch.dtype, *, cache_bytes: int = CACHE_BYTES
    ) -> None:
        self._text_encoder = text_encoder
        self._device = device
        self._dtype = dtype
        self._cache: OrderedDict[tuple[int, ...], torch.Tensor] = OrderedDict()
        self._cache_bytes = cache_bytes
        self.calls = 0

    def encode(self, prompt: Tokenized) -> torch.Tensor:
        """Return the embedding (77n, channels) in the UNet's dtype."""
        embedding = torch.cat([self._chunk(ids) for ids in prompt.chunks])
        if prompt.weights is not None:
            embedding = apply_weights(embedding, torch.tensor(prompt.weights, device=self._device))
        return embedding.to(self._dtype)

    def _chunk(self, ids: tuple[int, ...]) -> torch.Tensor:
        found = self._cache.get(ids)
        if found is not None:
            self._cache.move_to_end(ids)
            return found
        self.calls += 1
        # The last hidden state, behind the final layer norm.
        embedding: torch.Tensor = self._text_encoder(torch.tensor([ids], device=self._device))[0][0]
        self._cache[ids] = embedding
        while len(self._cache) > 1 and len(self._cache) * embedding.nbytes > self._cache_bytes:
            self._cache.popitem(last=False)
        return embedding


def apply_weights(embedding: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weigh an embedding (tokens, channels) by token and give it back its mean (LLMGA.md §5.1).

    Both means are over tokens and channels, computed in float32 and cast back.
    """
    weighted = embedding * weights[:, None].to(embedding.dtype)
    before = embedding.float().mean().to(embedding.dtype)
    after = weighted.float().mean().to(embedding.dtype)
    return weighted * (before / after)
