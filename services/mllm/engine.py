"""vLLM as the engine: token ids in, pieces of text out. One of the few files that touch vLLM."""

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from PIL import Image
from prometheus_client import REGISTRY
from vllm import SamplingParams
from vllm.engine.protocol import EngineClient
from vllm.inputs import TokensPrompt
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.exceptions import EngineDeadError

from services.mllm.checkpoints import Facts
from services.mllm.conversation import TEMPLATES
from services.mllm.flow import Load
from services.mllm.pictures import Picture
from services.mllm.tokenization import ImageSlot, PromptBuilder
from services.mllm.writing import Piece, PromptWriter, Sampling
from shared.errors import InternalError
from shared.settings import MLLMSettings

# Spelled as a marker: `<|im_end|>`, `</s>`, `[INST]`. Some families do not flag all of theirs as special.
_MARKER = re.compile(r"<[^\s<>]+>|\[[^\s\[\]]+\]")

# vLLM's own gauges, set after each of its steps.
_RUNNING, _WAITING = "vllm:num_requests_running", "vllm:num_requests_waiting"


class EngineDied(InternalError):
    """vLLM's engine process is gone; this process has to end too."""


class VLLMEngine:
    """The server's own engine client."""

    def __init__(self, client: EngineClient, facts: Facts) -> None:
        self._client = client
        self._image_token_id, self._image_side = facts.image_token_id, facts.image_size_px
        # top_k, top_p and the like of the checkpoint's generation_config.json
        self._defaults: dict[str, Any] = client.model_config.get_diff_sampling_param()

    @property
    def is_dead(self) -> bool:
        """Whether the engine process is gone."""
        return bool(self._client.errored)

    def load(self) -> Load:
        """Return how many requests vLLM has."""
        gauges = REGISTRY.restricted_registry([_RUNNING, _WAITING])
        counts = {_RUNNING: 0, _WAITING: 0}
        for metric in gauges.collect():
            counts[metric.name] += int(sum(sample.value for sample in metric.samples))
        return Load(
            unfinished=self._client.output_processor.get_num_unfinished_requests(),
            running=counts[_RUNNING],
            waiting=counts[_WAITING],
        )

    async def generate(
        self, token_ids: list[int], sampling: Sampling, *, picture: Picture | None, request_id: str, priority: int
    ) -> AsyncGenerator[Piece, None]:
        """Yield pieces until the answer ends; closing the generator aborts the request in vLLM.

        Raises:
            EngineDied: the engine process is gone.
        """
        options = {**self._defaults, "max_tokens": sampling.max_tokens, "temperature": sampling.temperature}
        if sampling.top_p is not None:
            options["top_p"] = sampling.top_p
        params = SamplingParams(
            **options,
            seed=sampling.seed,
            logprobs=sampling.logprobs,
            stop=list(sampling.stop),
            include_stop_str_in_output=sampling.keeps_stop,
            # The id that stands for pictures: the original has none that it could write.
            logit_bias={self._image_token_id: -100.0},
            output_kind=RequestOutputKind.DELTA,
        )
        asked = TokensPrompt(prompt_token_ids=token_ids)
        renderer = self._client.renderer
        if picture is None:
            (prompt,) = renderer.render_cmpl([asked])  # nothing to compute, so nothing to wait for
        else:
            asked["multi_modal_data"] = {"image": await asyncio.to_thread(_shrunk, picture, self._image_side)}
            # vLLM keeps what it has computed for a picture under this name.
            asked["multi_modal_uuids"] = {"image": [picture.key]}
            (prompt,) = await renderer.render_cmpl_async([asked])
        outputs = self._client.generate(prompt, params, request_id, priority=priority)
        try:
            async with aclosing(outputs):
                async for output in outputs:
                    (answer,) = output.outputs
                    yield Piece(
                        text=answer.text,
                        token_ids=list(answer.token_ids),
                        finish_reason=answer.finish_reason,
                        logprobs=[
                            {token: value.logprob for token, value in position.items()}
                            for position in answer.logprobs or ()
                        ],
                    )
        except EngineDeadError as error:
            raise EngineDied("The language model stopped.") from error


def _shrunk(picture: Picture, side: int) -> Image.Image:
    """Return a picture at the size that the tower sees.

    The first of CLIP's steps, done as in training: today's image processors shrink by another library, whose
    values differ by up to one, and so does what the model answers.
    """
    return Image.fromarray(picture.pixels).resize((side, side), Image.Resampling.BICUBIC)


def prompt_writer(client: EngineClient, facts: Facts, settings: MLLMSettings, *, model: str) -> PromptWriter:
    """Return the writer for a converted checkpoint that the server has loaded."""
    tokenizer = client.renderer.get_tokenizer()
    max_model_len = int(client.model_config.max_model_len)
    builder = PromptBuilder(
        tokenizer,
        TEMPLATES[facts.family],
        control_tokens=[
            added.content
            for added in tokenizer.added_tokens_decoder.values()
            if added.special or _MARKER.fullmatch(added.content)
        ],
        image_slot=ImageSlot(facts.image_token_id, facts.image_tokens),
        # Room for an answer of the usual length; at least half of the context is for the conversation.
        max_prompt_tokens=max(max_model_len - settings.max_tokens, max_model_len // 2),
        system_prompt=settings.system_prompt,
        space_before=facts.space_before,
    )
    return PromptWriter(
        VLLMEngine(client, facts),
        builder,
        model=model,
        max_model_len=max_model_len,
        tells_changes=facts.tells_changes,
    )
