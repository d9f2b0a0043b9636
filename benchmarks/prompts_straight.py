"""vLLM without any of ours around it: the yardstick of `benchmarks.prompts`, as a process of its own.

It is started with the arguments that our service gives its vLLM. For each line on standard input it generates
the prompts once and answers with one line of JSON.
"""

import asyncio
import json
import os
import sys
import time
from contextlib import aclosing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from services.mllm.checkpoints import prepare
from services.mllm.generation_prompt import CLOSE_TAG
from services.mllm.launch import vllm_arguments, vllm_environment
from services.mllm.server import resolve_options
from shared.settings import Settings


@dataclass(frozen=True, slots=True)
class Turnout:
    """One round: what was written, and the seconds from asking to the first token."""

    tokens: int
    seconds: float
    first_token_s: list[float]


def main() -> None:
    """Start the engine, then answer rounds until standard input ends."""
    concurrency, prompts = int(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())  # lists of token ids
    settings = Settings.load()
    prepared = prepare(settings.mllm.model, settings.home / "cache" / "mllm")
    options = resolve_options(settings, prepared)
    os.environ.update(vllm_environment(settings, options, parameters=prepared.facts.parameters))
    os.environ["VLLM_PLUGINS"] = "llmga_torchvision,llmga_parent"
    from services.mllm.torchvision_schemas import register

    register()
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser
    from vllm.v1.engine.async_llm import AsyncLLM

    arguments = vllm_arguments(settings, options, prepared, model="straight")
    parsed = make_arg_parser(FlexibleArgumentParser()).parse_args(arguments)
    engine = AsyncLLM.from_engine_args(AsyncEngineArgs.from_cli_args(parsed))
    asyncio.run(_serve(engine, prompts, concurrency, settings))


async def _serve(engine: Any, prompts: list[list[int]], concurrency: int, settings: Settings) -> None:
    defaults = engine.model_config.get_diff_sampling_param()
    defaults |= {"temperature": settings.mllm.temperature, "max_tokens": settings.mllm.max_tokens}
    try:
        while line := await asyncio.to_thread(sys.stdin.readline):
            turnout = await _round(engine, prompts, concurrency, defaults, name=line.strip())
            print(json.dumps(asdict(turnout)), flush=True)
    finally:
        engine.shutdown()


async def _round(
    engine: Any, prompts: list[list[int]], concurrency: int, defaults: dict[str, Any], *, name: str
) -> Turnout:
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt
    from vllm.sampling_params import RequestOutputKind

    turnout = Turnout(0, 0.0, [])
    tokens = 0
    waiting = iter(enumerate(prompts))

    async def ask() -> None:
        nonlocal tokens
        for seed, token_ids in waiting:
            params = SamplingParams(
                **defaults,
                seed=seed,
                stop=[CLOSE_TAG],
                include_stop_str_in_output=True,
                output_kind=RequestOutputKind.DELTA,
            )
            has_token = False
            asked_at = time.perf_counter()
            outputs = engine.generate(TokensPrompt(prompt_token_ids=token_ids), params, f"{name}-{seed}")
            async with aclosing(outputs):
                async for output in outputs:
                    (answer,) = output.outputs
                    tokens += len(answer.token_ids)
                    if answer.token_ids and not has_token:
                        has_token = True
                        turnout.first_token_s.append(time.perf_counter() - asked_at)

    started_at = time.perf_counter()
    await asyncio.gather(*(ask() for _ in range(concurrency)))
    seconds = time.perf_counter() - started_at
    return Turnout(tokens, seconds, turnout.first_token_s)


if __name__ == "__main__":
    main()
