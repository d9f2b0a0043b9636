"""Finished jobs as answers of the image calls. Files are read and put into base64 beside the event loop."""

import asyncio
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from gateway.backend import Backend
from gateway.openai.image_answers import CompletedEvent, ImageData, ImagesAnswer, ImageUsage
from gateway.openai.image_requests import Quality
from shared.artifacts import ArtifactStore
from shared.contracts import ImageResult, Job, JobStatus, Problem
from shared.errors import Gone, LLMGAError
from shared.media import inline_text


@dataclass(frozen=True, slots=True)
class Results:
    """Where results come from and how they are named; made for one call."""

    artifacts: ArtifactStore
    base_url: str
    tenant: str
    quality: Quality

    @classmethod
    def of(cls, request: Request, backend: Backend, quality: Quality | None = None) -> "Results":
        """Return the results of a call."""
        base_url = backend.settings.gateway.public_url or str(request.base_url)
        return cls(backend.artifacts, base_url.rstrip("/"), backend.caller.tenant, (quality or Quality.AUTO).level)

    def url(self, image: ImageResult) -> str:
        """Return the address of a picture as its client can use it."""
        return f"{self.base_url}{image.url}"

    async def answer(self, job: Job, *, as_urls: bool) -> bytes:
        """Return the answer of a job that has succeeded.

        Raises:
            NotFound: a picture of it is no longer kept.
        """
        return await asyncio.to_thread(self._answer, job, as_urls)

    def _answer(self, job: Job, as_urls: bool) -> bytes:
        answer = ImagesAnswer(
            created=int(job.updated_at),
            data=[
                ImageData(
                    b64_json=None if as_urls else self._base64(image),
                    url=self.url(image) if as_urls else None,
                    revised_prompt=job.prompt.text if job.prompt else None,
                    id=image.id,
                    seed=image.seed,
                )
                for image in job.images
            ],
            output_format=job.request.output_format,
            quality=self.quality,
            size=size_of(job),
            usage=ImageUsage.of(job),
            job_id=job.id,
        )
        return answer.model_dump_json(exclude_none=True).encode()

    async def completed(self, job: Job, image: ImageResult, call: str) -> bytes:
        """Return the event of a finished picture, as JSON.

        Raises:
            NotFound: the picture is no longer kept.
        """
        return await asyncio.to_thread(self._completed, job, image, call)

    def _completed(self, job: Job, image: ImageResult, call: str) -> bytes:
        event = CompletedEvent(
            type=f"{call}.completed",
            b64_json=self._base64(image),
            created_at=int(job.updated_at),
            output_format=job.request.output_format,
            quality=self.quality,
            size=f"{image.width}x{image.height}",
            image_index=image.index,
            usage=ImageUsage.of(job),
            url=self.url(image),
            revised_prompt=job.prompt.text if job.prompt else None,
            id=image.id,
            seed=image.seed,
            job_id=job.id,
        )
        return event.model_dump_json(exclude_none=True).encode()

    async def inline(self, job: Job) -> list[dict[str, Any]]:
        """Return the pictures of a job that has succeeded, as a chat's message holds them.

        Raises:
            NotFound: a picture of it is no longer kept.
        """
        return await asyncio.to_thread(lambda: [self._inline(job, image) for image in job.images])

    def _inline(self, job: Job, image: ImageResult) -> dict[str, Any]:
        return {
            "type": "image_url",
            "image_url": {"url": f"data:{image.media_type};base64,{self._base64(image)}"},
            "url": self.url(image),
            "id": image.id,
            "seed": image.seed,
            "job_id": job.id,
            "revised_prompt": job.prompt.text if job.prompt else None,
        }

    def _base64(self, image: ImageResult) -> str:
        data, _ = self.artifacts.get(image.id, tenant=self.tenant)
        return inline_text(data)


def size_of(job: Job) -> str:
    """Return `WIDTHxHEIGHT` of a job's pictures: finished ones where there are any."""
    if job.images:
        return f"{job.images[0].width}x{job.images[0].height}"
    return job.request.size or ""


class JobFailed(LLMGAError):
    """The problem of a job, as that of the call that waited for it."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self._problem = problem

    def to_problem(self, instance: str | None = None) -> Problem:
        """Return the job's problem."""
        return self._problem


def check_succeeded(job: Job) -> None:
    """Refuse what has no pictures.

    Raises:
        JobFailed: the job ended in another way.
        Gone: it was canceled.
    """
    if job.status is JobStatus.CANCELED:
        raise Gone("The job was canceled before its picture was finished.")
    if job.error is not None:
        raise JobFailed(job.error)
