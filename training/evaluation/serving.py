"""The running system for figures and sheets: pictures and prompts through the gateway, prompts of the language model.

Several requests are under way at once, as of several people, so that batching is part of what is measured.
"""

import base64
import io
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
import numpy as np
from PIL import Image
from tqdm import tqdm

from services.diffusion.seams import Mask
from services.mllm.instructions import Writing
from training.evaluation.writing import Ask
from training.world.drawing import Pixels

AT_ONCE = 8
WAIT_S = 60
PATIENCE_S = 600.0  # for one job, on a laptop with a queue
BUSY = frozenset({429, 503})
PAUSE_S = 0.5

A = TypeVar("A")
B = TypeVar("B")


class Unserved(Exception):
    """The running system does not do this, or did not do it."""


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """A finished job: its prompt, its picture and, by their names, the pictures on the way that its record has."""

    prompt: str
    picture: Pixels
    on_the_way: dict[str, Pixels]


class Gateway:
    """The REST gateway: a painter by `verbatim` jobs, a writer by `prompt` jobs."""

    def __init__(self, url: str, *, at_once: int = AT_ONCE) -> None:
        self._url = url
        self._at_once = at_once

    def render(self, captions: Sequence[str], seeds: Sequence[int]) -> list[Pixels]:
        """Return one picture per caption."""

        bodies = [
            {"instruction": caption, "prompt_mode": "verbatim", "seed": seed}
            for caption, seed in zip(captions, seeds, strict=True)
        ]
        return [made.picture for made in self.make(bodies)]

    def fill(
        self, pixels: Sequence[Pixels], holes: Sequence[Mask], captions: Sequence[str], seeds: Sequence[int]
    ) -> list[Pixels]:
        """Return the pictures with their holes painted by the captions, seams hidden as the system does by itself."""
        bodies = [
            {
                "task": "inpaint",
                "instruction": caption,
                "prompt_mode": "verbatim",
                "seed": seed,
                "image": data_uri(picture),
                "mask": data_uri(gray(hole)),
            }
            for picture, hole, caption, seed in zip(pixels, holes, captions, seeds, strict=True)
        ]
        return [made.picture for made in self.make(bodies)]

    def make(self, bodies: Sequence[dict[str, Any]]) -> list[Made]:
        """Return what comes of requests, each the body of `POST /v1/generations`."""

        def fetched(url: str) -> Pixels:
            data = _patiently(lambda: http.get(url), time.monotonic() + PATIENCE_S)
            return np.asarray(Image.open(io.BytesIO(data.content)).convert("RGB"))

        def one(body: dict[str, Any]) -> Made:
            job = _job(http, body)
            [image] = job["images"]
            on_the_way = {artifact["name"]: fetched(artifact["url"]) for artifact in image["artifacts"]}
            return Made(job["prompt"]["text"], fetched(image["url"]), on_the_way)

        with _client(self._url) as http:
            return _together(one, bodies, self._at_once, "drawing")

    def write(self, asks: Sequence[Ask]) -> list[str]:
        """Return the prompts that jobs write; the gateway serves requests and similar pictures."""
        for ask in asks:
            if ask.writing not in (Writing.TEXT_TO_IMAGE, Writing.SIMILAR):
                raise Unserved(f"no job of the gateway asks for '{ask.writing}'; give --mllm-url")

        def one(ask: Ask) -> str:
            body: dict[str, Any] = {"task": "prompt", "instruction": ask.instruction}
            if ask.picture is not None:
                body["image"] = data_uri(ask.picture)
            return str(_job(http, body)["prompt"]["text"])

        with _client(self._url) as http:
            return _together(one, asks, self._at_once, "writing")


class LanguageModel:
    """The language model's own interface, which serves every task."""

    def __init__(self, url: str, *, at_once: int = AT_ONCE) -> None:
        self._url = url
        self._at_once = at_once

    def write(self, asks: Sequence[Ask]) -> list[str]:
        """Return the first prompt of each answer, or the answer where it is in words."""

        def one(ask: Ask) -> str:
            until = time.monotonic() + PATIENCE_S
            answer = _patiently(lambda: http.post("/v1/generation-prompts", json=body_of(ask)), until).json()
            return str(answer["prompt"]["text"] if answer.get("prompt") else answer["text"])

        with _client(self._url) as http:
            return _together(one, asks, self._at_once, "writing")


def body_of(ask: Ask) -> dict[str, Any]:
    """Return what `POST /v1/generation-prompts` of the language model is asked; greedy, so that figures repeat."""
    body: dict[str, Any] = {"task": ask.writing, "instruction": ask.instruction, "temperature": 0.0}
    if ask.picture is not None:
        body["image"] = data_uri(ask.picture)
    if ask.hole is not None:
        body["mask"] = data_uri(gray(ask.hole))
    return body


def _job(http: httpx.Client, body: dict[str, Any]) -> dict[str, Any]:
    """Submit a job and return its record when it has succeeded."""
    until = time.monotonic() + PATIENCE_S
    answer = _patiently(lambda: http.post("/v1/generations", json=body, headers={"Prefer": f"wait={WAIT_S}"}), until)
    job: dict[str, Any] = answer.json()
    path = f"/v1/jobs/{job['id']}"
    while job["status"] not in ("succeeded", "failed", "canceled") and time.monotonic() < until:
        time.sleep(PAUSE_S)
        job = _patiently(lambda: http.get(path), until).json()
    if job["status"] != "succeeded":
        raise Unserved(f"job {job['id']} {job['status']}: {job.get('error')}")
    return job


def _client(url: str) -> httpx.Client:
    # A proxy of the environment is for other machines than this one.
    is_local = httpx.URL(url).host in ("127.0.0.1", "::1", "localhost")
    return httpx.Client(base_url=url, timeout=WAIT_S + PATIENCE_S / 10, trust_env=not is_local)


def _patiently(ask: Callable[[], httpx.Response], until: float) -> httpx.Response:
    """Return the answer; ask again while the system is busy."""
    try:
        while (answer := ask()).status_code in BUSY and time.monotonic() < until:
            time.sleep(PAUSE_S)
    except httpx.TransportError as error:
        raise Unserved(f"{error.request.url} does not answer ({error}): is the system running?") from error
    if answer.is_error:
        raise Unserved(f"{answer.request.url}: {answer.status_code} {answer.text[:300]}")
    return answer


def _together(work: Callable[[A], B], items: Sequence[A], at_once: int, doing: str) -> list[B]:
    with ThreadPoolExecutor(at_once) as pool:
        return list(tqdm(pool.map(work, items), total=len(items), desc=doing))


def gray(hole: Mask) -> Pixels:
    """Return a mask as a picture, white where it is to be painted."""
    return np.repeat(hole[..., None] * np.uint8(255), 3, axis=2)


def data_uri(pixels: Pixels) -> str:
    """Return a picture as requests hold it."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
