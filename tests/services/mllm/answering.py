"""`python -m tests.services.mllm.answering FOLDER`: our writer over real vLLM engines, one after the other.

vLLM's engines live in this process, without its server: seven starts cost seconds instead of minutes. What is
asked stands in FOLDER/asked.json; answers go to FOLDER/answers.json.
"""

import asyncio
import gc
import json
import os
import sys
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

MODEL_LEN, RUNNING = 1_024, 12
STARTUP = Path(__file__).parents[3] / "services" / "mllm" / "startup"
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(STARTUP),
    "TORCH_COMPILE_DISABLE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_PLUGINS": "llmga_torchvision",
}


class InProcess:
    """What our engine needs of vLLM's client, over the engine in this process."""

    errored = False

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.model_config, self.renderer = engine.model_config, engine.renderer
        self.output_processor = engine.output_processor
        self._outputs: dict[str, asyncio.Queue[Any]] = {}
        self._stepping: asyncio.Task[None] | None = None

    async def generate(self, prompt: Any, params: Any, request_id: str, *, priority: int) -> AsyncGenerator[Any, None]:
        """Yield the outputs of one request."""
        self._outputs[request_id] = asyncio.Queue()
        self._engine.add_request(request_id, prompt, params, priority=priority)
        if self._stepping is None or self._stepping.done():
            self._stepping = asyncio.create_task(self._step())
        finished = False
        while not finished:
            output = await self._outputs[request_id].get()
            if isinstance(output, Exception):
                raise output
            finished = output.finished
            yield output

    async def _step(self) -> None:
        try:
            while self._engine.has_unfinished_requests():
                for output in self._engine.step():
                    self._outputs[output.request_id].put_nowait(output)
                await asyncio.sleep(0)
        except Exception as error:  # nobody awaits this task: who waits for outputs must hear of it
            for queue in self._outputs.values():
                queue.put_nowait(error)


async def answer_all(family: dict[str, Any]) -> dict[str, Any]:
    """Convert a checkpoint, load it, and return the answers to what is asked of it, all at once."""
    import numpy as np
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    from services.mllm import launch
    from services.mllm.checkpoints import convert
    from services.mllm.conversation import Turn
    from services.mllm.engine import prompt_writer
    from services.mllm.pictures import picture_of
    from services.mllm.writing import Answer, Sampling
    from shared.settings import MLLMSettings

    started = time.monotonic()
    launch.CPU_BATCHED_TOKENS = 0  # with these small models it would hide what the rest of the rule is for
    facts = convert(Path(family["source"]), Path(family["target"]))
    engine = LLMEngine.from_engine_args(
        EngineArgs(
            model=family["target"],
            dtype="float32",
            enforce_eager=True,
            enable_chunked_prefill=False,
            max_model_len=MODEL_LEN,
            max_num_seqs=RUNNING,
            max_num_batched_tokens=launch.cpu_batched_tokens(MODEL_LEN, RUNNING, facts.image_tokens),
            kv_cache_memory_bytes=family["cache_bytes"],
            limit_mm_per_prompt={"image": 1},
            max_logprobs=20,
            disable_log_stats=True,
        )
    )
    settings = MLLMSettings(max_tokens=128)
    writer = prompt_writer(InProcess(engine), facts, settings, model="mini")

    async def answer(number: int, asked: dict[str, Any]) -> dict[str, Any]:
        picture = None if asked["pixels"] is None else picture_of(np.load(asked["pixels"]))
        sampling = Sampling(asked["max_tokens"], asked["temperature"], seed=asked["seed"], logprobs=20, stop=())
        parts = writer.speak(
            [Turn(*turn) for turn in asked["turns"]], sampling, picture=picture, request_id=f"r{number}", priority=0
        )
        *_, last = [part async for part in parts]
        assert isinstance(last, Answer)
        return {
            "prompt_token_ids": last.prompt_token_ids,
            "token_ids": last.token_ids,
            "logprobs": last.logprobs,
            "text": last.text,
        }

    answers = await asyncio.gather(*(answer(number, asked) for number, asked in enumerate(family["asked"])))
    pictures = engine.renderer.stat_mm_cache()
    return {
        "facts": vars(facts),
        "answers": answers,
        "pictures": {"asked": pictures.queries, "known": pictures.hits},
        "took_s": round(time.monotonic() - started, 1),
    }


def main() -> None:
    """Answer all that is asked."""
    folder = Path(sys.argv[1])
    from services.mllm.torchvision_schemas import register

    register()
    answers = {}
    for name, family in json.loads((folder / "asked.json").read_text()).items():
        answers[name] = asyncio.run(answer_all(family))
        gc.collect()
        from vllm.distributed import cleanup_dist_env_and_memory

        cleanup_dist_env_and_memory()
        sys.stderr.write(f"{name}: {answers[name]['took_s']} s\n")
    (folder / "answers.json").write_text(json.dumps(answers))
    os._exit(0)  # vLLM's engines are gone; what they leave to the interpreter's end is not ours


if __name__ == "__main__":
    main()
