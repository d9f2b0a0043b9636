"""`llmga generate`: send a request, show how it goes, and save the pictures."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clients.client import Client
from clients.view import Story, View
from shared.contracts import GenerationRequest, ImageResult, Job, JobStatus, OutputFormat

_FORMATS = {
    ".png": OutputFormat.PNG,
    ".jpg": OutputFormat.JPEG,
    ".jpeg": OutputFormat.JPEG,
    ".webp": OutputFormat.WEBP,
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """A job that has ended, and the files that hold its pictures."""

    job: Job
    files: Sequence[Path]


def format_of(output: Path | None) -> OutputFormat:
    """Return the format that a file name asks for; PNG without a name.

    Raises:
        ValueError: the suffix is none of those offered.
    """
    if output is None:
        return OutputFormat.PNG
    try:
        return _FORMATS[output.suffix.lower()]
    except KeyError:
        raise ValueError(f"{output} must end with one of: {', '.join(_FORMATS)}") from None


def generate(client: Client, request: GenerationRequest, view: View, *, output: Path | None = None) -> Outcome:
    """Submit the request, follow it to its end, and save its pictures.

    An interruption (Ctrl-C) cancels the job before it goes on to the caller.
    """
    job = client.submit(request)
    story = Story(pictures=request.n)
    try:
        with view:
            for event in client.events(job.id):
                story.take(event)
                view.update(story, event)
    except KeyboardInterrupt:
        client.cancel(job.id)
        raise
    job = client.get(job.id)
    files = [] if job.status is not JobStatus.SUCCEEDED else save(client, job, output)
    return Outcome(job, files)


def save(client: Client, job: Job, output: Path | None) -> list[Path]:
    """Save the job's pictures: the first under the name that was asked for, further ones numbered."""
    files = []
    for image in job.images:
        path = _path(job, image, output)
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(path.name + ".part")
        fresh.write_bytes(client.image(image.id))
        fresh.rename(path)
        files.append(path)
    return files


def _path(job: Job, image: ImageResult, output: Path | None) -> Path:
    suffix = "." + image.media_type.rpartition("/")[2].replace("jpeg", "jpg")
    path = output or Path(f"llmga-{job.id[-8:]}{suffix}")
    return path if image.index == 0 else path.with_stem(f"{path.stem}-{image.index}")


def report(outcome: Outcome) -> None:
    """Write what came of it: files or the prompt on standard output, the rest on standard error."""
    job = outcome.job
    for path in outcome.files:
        print(path)
    if job.status is JobStatus.SUCCEEDED and not outcome.files and job.prompt is not None:
        for text in [job.prompt.text, *(job.prompt.more or [])]:
            print(text)
    if job.status is JobStatus.SUCCEEDED and outcome.files:
        print(f"seed {job.request.seed}, model {job.request.model}, {_seconds(job)}", file=sys.stderr)
        if job.prompt is not None and job.prompt.truncated_tokens:
            lost, tokens = job.prompt.truncated_tokens, job.prompt.prompt_tokens
            print(f"the prompt was too long: the last {lost} of its {tokens} tokens had no effect", file=sys.stderr)


def _seconds(job: Job) -> str:
    named = {
        "prompt": job.timings.prompt_s,
        "render": job.timings.render_s,
        "total": job.timings.total_s,
    }
    return ", ".join(f"{name} {seconds:.1f} s" for name, seconds in named.items() if seconds is not None)
