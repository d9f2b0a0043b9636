"""The command line as its users meet it: in a terminal, in a pipe, and with mistakes."""

import asyncio
import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from clients import cli
from clients.generate import Outcome, report
from gateway import examples
from shared.contracts import Job, JobStatus
from tests.gateway.conftest import House, until
from tests.gateway.pictures import file_of, pixels_of

ESCAPE = "\x1b"


async def llmga(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Run the command with pipes; return its status and what it wrote."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "clients.cli",
        *arguments,
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def in_terminal(folder: Path, *arguments: str) -> tuple[int, str]:
    """Run the command in a terminal; return its status and what was shown."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "clients.cli", *arguments],
        cwd=folder,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        close_fds=True,
        start_new_session=True,
    )
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 65_536):
            shown += chunk
    except OSError:  # how Linux says that the other side is gone
        pass
    finally:
        os.close(ours)
    return process.wait(), shown.decode()


async def test_a_pipe_gets_plain_lines_and_the_file_name_alone_on_standard_output(house: House, tmp_path: Path) -> None:
    status, out, err = await llmga(tmp_path, "generate", "a red house", "--url", house.url, "--output", "h.png")
    assert (status, out) == (0, "h.png\n")
    assert "writing the prompt" in err
    assert "prompt: a picture of (a red house)" in err
    assert "step 4 of 4" in err
    assert ESCAPE not in out + err
    assert (tmp_path / "h.png").read_bytes().startswith(b"\x89PNG")


async def test_a_terminal_shows_the_prompt_and_the_file(house: House, tmp_path: Path) -> None:
    arguments = ("generate", "a red house", "--url", house.url, "--output", "h.png")
    status, shown = await asyncio.to_thread(in_terminal, tmp_path, *arguments)
    assert status == 0
    assert ESCAPE in shown
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert "a picture of (a red house)" in plain
    assert "h.png" in plain


async def test_every_option_reaches_the_request(house: House, tmp_path: Path) -> None:
    wishes = ["--size", "64x72", "--seed", "5", "--steps", "2", "--n", "2", "--model", "painter", "--negative", "fog"]
    status, out, _ = await llmga(
        tmp_path, "generate", "a fox", *wishes, "--verbatim", "--output", "f.jpg", "--json", "--url", house.url
    )
    assert status == 0
    job = Job.model_validate_json(out)
    request = job.request
    assert (request.size, request.seed, request.num_inference_steps, request.n) == ("64x72", 5, 2, 2)
    assert (request.model, request.negative_prompt, request.prompt_mode) == ("painter", "fog", "verbatim")
    assert job.prompt is not None
    assert job.prompt.text == "a fox"
    assert (tmp_path / "f.jpg").read_bytes().startswith(b"\xff\xd8")
    assert (tmp_path / "f-1.jpg").exists()


async def test_prompt_only_writes_the_prompt_to_standard_output(house: House, tmp_path: Path) -> None:
    status, out, _ = await llmga(tmp_path, "generate", "a fox", "--prompt-only", "--url", house.url)
    assert (status, out) == (0, "a picture of (a fox)\n")
    assert list(tmp_path.glob("*.*")) == []


async def test_a_picture_is_uploaded_and_a_similar_one_made(house: House, tmp_path: Path) -> None:
    (tmp_path / "source.webp").write_bytes(file_of(pixels_of(), "WEBP"))
    arguments = ["generate", "--image", "source.webp", "--output", "s.png", "--json", "--url", house.url]
    status, out, _ = await llmga(tmp_path, *arguments)
    assert status == 0
    request = Job.model_validate_json(out).request
    assert (request.task, request.instruction) == ("similar", "")
    assert request.image is not None
    assert (await house.http.get(f"/v1/images/{request.image}")).status_code == 200
    assert (tmp_path / "s.png").exists()


async def test_a_prompt_can_be_written_of_a_picture(house: House, tmp_path: Path) -> None:
    (tmp_path / "source.png").write_bytes(file_of(pixels_of()))
    arguments = ["generate", "at night", "--image", "source.png", "--prompt-only", "--url", house.url]
    status, out, _ = await llmga(tmp_path, *arguments)
    assert (status, out) == (0, "a picture of (at night)\n")


def test_all_prompts_of_a_story_are_written(capsys: pytest.CaptureFixture[str]) -> None:
    prompt = {"text": "a fox", "source": "mllm", "more": ["a hen"]}
    job = {**examples.SUCCEEDED_JOB, "images": [], "prompt": prompt}
    report(Outcome(Job.model_validate(job), []))
    assert capsys.readouterr().out == "a fox\na hen\n"


def test_what_did_not_fit_the_text_encoder_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    prompt = {**examples.SUCCEEDED_JOB["prompt"], "prompt_tokens": 240, "truncated_tokens": 15}
    report(Outcome(Job.model_validate({**examples.SUCCEEDED_JOB, "prompt": prompt}), [Path("a.png")]))
    assert "the last 15 of its 240 tokens" in capsys.readouterr().err
    report(Outcome(Job.model_validate(examples.SUCCEEDED_JOB), [Path("a.png")]))
    assert "tokens" not in capsys.readouterr().err


async def test_a_refusal_shows_the_problem_and_the_next_step(house: House, tmp_path: Path) -> None:
    status, out, err = await llmga(tmp_path, "generate", "a fox", "--model", "nobody", "--url", house.url)
    assert (status, out) == (cli.FAILED, "")
    assert err.startswith("error: Model not served: ")
    assert "served: painter" in err


async def test_ctrl_c_cancels_the_job(house: House, tmp_path: Path) -> None:
    house.render.gate.clear()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "clients.cli", "generate", "a fox", "--url", house.url, cwd=tmp_path
    )
    await until(lambda: bool(house.render.claims))
    process.send_signal(signal.SIGINT)
    assert await process.wait() == cli.INTERRUPTED
    assert (await house.job(house.render.claims[0].job.id)).status is JobStatus.CANCELED


async def test_a_job_that_somebody_cancels_ends_with_its_own_status(house: House, tmp_path: Path) -> None:
    house.render.gate.clear()
    running = asyncio.create_task(llmga(tmp_path, "generate", "a fox", "--url", house.url))
    await until(lambda: bool(house.render.claims))
    job_id = house.render.claims[0].job.id
    assert await llmga(tmp_path, "jobs", "cancel", job_id, "--url", house.url) == (0, f"{job_id} canceled\n", "")
    status, out, err = await running
    assert (status, out) == (cli.CANCELED, "")
    assert "was canceled" in err


async def test_a_job_is_shown_as_its_record(house: House, tmp_path: Path) -> None:
    job = await house.submit()
    status, out, _ = await llmga(tmp_path, "jobs", "show", job.id, "--url", house.url)
    assert status == 0
    assert json.loads(out)["id"] == job.id


async def test_jobs_are_listed_the_latest_first(house: House, tmp_path: Path) -> None:
    house.prompt.gate.clear()
    first, second = await house.submit(instruction="a fox\nat night"), await house.submit()
    await house.http.post(f"/v1/jobs/{second.id}/cancel")
    _, out, _ = await llmga(tmp_path, "jobs", "list", "--url", house.url)
    rows = [line.split(maxsplit=1) for line in out.splitlines()]
    assert [row[0] for row in rows] == [second.id, first.id]
    assert rows[0][1].startswith("canceled ")
    assert rows[1][1].endswith("a fox at night")
    options = ("--status", "canceled", "--json", "--url", house.url)
    _, out, _ = await llmga(tmp_path, "jobs", "list", *options)
    assert [job["id"] for job in json.loads(out)] == [second.id]
    _, out, _ = await llmga(tmp_path, "jobs", "list", "--limit", "1", "--url", house.url)
    assert len(out.splitlines()) == 1


def test_every_status_can_be_asked_for() -> None:
    assert list(cli.JOB_STATUSES) == list(JobStatus)


async def test_models_are_listed_with_what_they_are(house: House, tmp_path: Path) -> None:
    _, out, _ = await llmga(tmp_path, "models", "--url", house.url)
    rows = [line.split() for line in out.splitlines()]
    assert ["painter", "render", "sd15", "128x128", "ready", "default"] in rows
    assert ["writer", "prompt", "llama", "ready", "default"] in rows


def test_published_checkpoints_are_listed_without_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "--published"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:2] == ["HUB", "ID"]
    (row,) = [row.split() for row in rows if row.startswith("binxia/llmga-cn-llama3-8b-it-full-finetune ")]
    assert row[1:6] == ["prompt", "llama3", "en,zh", "8.35", "B"]
    bf16, bits8, bits4 = map(float, row[6:])
    assert 16.6 < bf16 < 16.8
    assert bf16 > bits8 > bits4 > 4
    assert len(rows) == 21


def test_published_checkpoints_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "--published", "--json"]) == 0
    models = json.loads(capsys.readouterr().out)
    assert {"hub_id", "family", "languages", "parameters", "memory_gb"} <= models[0].keys()


def test_no_server_is_said_with_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = cli.main(["generate", "a fox", "--url", "http://127.0.0.1:1", "--home", str(tmp_path)])
    assert status == cli.UNREACHABLE
    error = capsys.readouterr().err
    assert "nothing answers at http://127.0.0.1:1" in error
    assert "llmga up" in error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--size", "100x100"], "multiples of 8"),
        (["--size", "big"], "WIDTHxHEIGHT"),
        (["--n", "0"], "n: "),
        (["--seed", "-1"], "seed: "),
        (["--output", "fox.gif"], ".png"),
        (["--image", "not-there.png"], "not-there.png cannot be read"),
        (["--task", "similar"], "image: "),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_sent(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["generate", "a fox", "--url", "http://127.0.0.1:1", *arguments]) == cli.BAD_USAGE
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("command", ["generate", "jobs", "models", "up", "demo"])
def test_help_names_the_exit_statuses_and_imports_nothing_heavy(command: str) -> None:
    code = (
        "import sys; from clients import cli\n"
        "try: cli.main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "sys.stderr.write(' '.join(sorted({'httpx', 'rich', 'pydantic', 'torch'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code, command, "--help"], capture_output=True, text=True, check=True)
    assert "exit status:" in done.stdout
    assert done.stderr == ""
