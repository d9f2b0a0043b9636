"""The `llmga` command.

Everything that takes time to import is imported by the command that needs it, so `--help` answers at once. Progress
goes to standard error and results to standard output, so that both a person and a pipe get what they want.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clients.client import Client
    from clients.generate import Outcome
    from clients.keys import KeysFile

OK, FAILED, BAD_USAGE, UNREACHABLE, CANCELED, NOT_STARTED, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130

# As in `shared.contracts`, which takes time to import; a test holds that they are the same.
JOB_STATUSES = ("queued", "running", "awaiting_approval", "succeeded", "failed", "canceled")

EXIT_STATUSES = """\
exit status:
  0    done
  1    the request was refused, or the job failed
  2    the command line makes no sense
  3    no server answers
  4    the job was canceled
  5    the local system cannot be started
  130  interrupted
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    options = parser().parse_args(arguments)
    from clients.errors import ServerProblem, UnexpectedAnswer, Unreachable
    from clients.keys import KeysError
    from clients.local.errors import LaunchError

    try:
        return int(options.run(options))
    except ServerProblem as error:
        problem = error.problem
        complain(f"{problem.title}: {problem.detail}", problem.next_step)
        for fault in problem.errors:
            print(f"  {fault.field or 'body'}: {fault.message}", file=sys.stderr)
        for model in problem.served_models or []:
            print(f"  served: {model}", file=sys.stderr)
        if problem.code == "unauthenticated":
            print("The key is taken from the environment variable LLMGA_API_KEY.", file=sys.stderr)
        return FAILED
    except KeysError as error:
        complain(error.detail, error.next_step)
        return FAILED
    except Unreachable as error:
        complain(f"nothing answers at {error.url}", "Start a system with `llmga up`, or name one with --url.")
        return UNREACHABLE
    except UnexpectedAnswer as error:
        complain(str(error), "Check the URL.")
        return UNREACHABLE
    except LaunchError as error:
        complain(error.detail, error.next_step)
        return NOT_STARTED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def complain(problem: str, advice: str) -> None:
    """Write what is wrong and what to do to standard error."""
    print(f"error: {problem}\n{advice}", file=sys.stderr)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    top = argparse.ArgumentParser(
        prog="llmga",
        description="Pictures from words: LLMGA writes the prompt, a diffusion service renders it.",
        epilog=EXIT_STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Any, help: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=help,
            description=help[0].upper() + help[1:] + ".",
            epilog=EXIT_STATUSES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(run=run)
        command.add_argument("--home", type=Path, help="folder of the local system (LLMGA_HOME, ./.llmga)")
        return command

    generate = add("generate", _generate, "make pictures from an instruction, and show how it goes")
    generate.add_argument(
        "instruction", nargs="?", default="", help="what you want, in your own words; English or Chinese"
    )
    generate.add_argument("--image", type=Path, metavar="FILE", help="a picture to make a similar one of, or to edit")
    generate.add_argument("--size", metavar="WxH", help="in pixels (default: the model's own)")
    generate.add_argument("--seed", type=int, help="for the same picture again (default: random)")
    generate.add_argument("--steps", type=int, help="inference steps (default: the model's own)")
    generate.add_argument("--n", type=int, help="number of pictures (default 1)")
    generate.add_argument("--model", help="diffusion model by name")
    generate.add_argument("--negative", metavar="TEXT", help="what should not be in the picture")
    mode = generate.add_mutually_exclusive_group()
    mode.add_argument("--task", choices=("text_to_image", "similar", "edit"), help="default: similar with --image")
    mode.add_argument("--prompt-only", action="store_true", help="write the generation prompt and stop there")
    mode.add_argument("--verbatim", action="store_true", help="render the instruction as it is, without the MLLM")
    generate.add_argument("--output", type=Path, metavar="FILE", help="where to save; .png, .jpg or .webp")
    _add_server_options(generate)

    jobs = add("jobs", None, "list your jobs, look at one, or cancel it")
    actions = jobs.add_subparsers(required=True, metavar="ACTION")
    jobs_list = actions.add_parser("list", help="list your jobs, the latest first")
    jobs_list.set_defaults(run=_list_jobs)
    jobs_list.add_argument("--status", choices=JOB_STATUSES, help="only jobs of this status")
    jobs_list.add_argument("--limit", type=int, default=20, help="at most so many (default 20)")
    _add_server_options(jobs_list)
    for name, run, text in (("show", _show, "show a job's record"), ("cancel", _cancel, "cancel a job")):
        action = actions.add_parser(name, help=text)
        action.set_defaults(run=run)
        action.add_argument("job", help="the job's id")
        _add_server_options(action)

    models = add("models", _models, "list the models that are served now")
    models.add_argument(
        "--published",
        action="store_true",
        help="list every published LLMGA checkpoint instead, with what it takes to serve it; needs no server",
    )
    _add_server_options(models)

    keys = add("keys", None, "make, list and revoke the API keys of a gateway whose file of keys is here")
    actions = keys.add_subparsers(required=True, metavar="ACTION")
    create = actions.add_parser("create", help="make a key and print it, once and for all")
    create.add_argument("tenant", help="whose jobs and pictures its holder sees; a new name makes a new tenant")
    create.add_argument("--note", default="", help="for those who list the keys")
    listing = actions.add_parser("list", help="list the keys, good and revoked; none of them can be printed again")
    listing.add_argument("--json", action="store_true", help="as JSON")
    revoke = actions.add_parser("revoke", help="revoke a key; it stops working within a second")
    revoke.add_argument("key", help="the key's id, as in the list and in the key itself: llmga_<id>_…")
    for action, run in ((create, _create_key), (listing, _list_keys), (revoke, _revoke_key)):
        action.set_defaults(run=run)
        action.add_argument(
            "--keys-file", type=Path, metavar="FILE", help="the file (LLMGA_AUTH__KEYS_FILE, keys.json in the home)"
        )

    up = add("up", _up, "start a whole system on this machine and keep it running")
    up.add_argument("--port", type=int, help="of the gateway (LLMGA_GATEWAY__PORT, 8080); 0 for any free one")
    up.add_argument("--workers", type=_count, default=1, help="diffusion workers (default 1)")
    up.add_argument(
        "--models",
        type=Path,
        help="folder of a pair, as models/llmga-tiny is (the default); where there is none, one with random weights is "
        "made and paints noise",
    )

    demo = add("demo", _demo, "make one picture in a system of its own: out/demo.png and out/demo.json")
    demo.add_argument("--out", type=Path, default=Path("out"), help="folder for the results (default ./out)")
    demo.add_argument("--port", type=int, default=0, help="of the gateway (default: any free one)")
    return top


def _add_server_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--url", help="the gateway (default: the local system that runs, or port 8080)")
    command.add_argument("--json", action="store_true", help="write the record as JSON to standard output")


def _count(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 16:
        raise argparse.ArgumentTypeError("must be between 1 and 16")
    return number


def _home(options: argparse.Namespace) -> Path:
    given: Path | None = options.home
    return (given or Path(os.environ.get("LLMGA_HOME") or ".llmga")).absolute()


def _client(options: argparse.Namespace) -> "Client":
    from clients.client import Client
    from clients.local.home import read_run

    if options.url:
        return Client(options.url)
    running = read_run(_home(options))
    return Client(running.url if running else "http://127.0.0.1:8080")


def _generate(options: argparse.Namespace) -> int:
    from pydantic import ValidationError

    from clients.generate import format_of, generate
    from clients.view import open_view
    from shared.contracts import GenerationRequest

    try:
        picture = options.image.read_bytes() if options.image else None
        wishes = {
            "task": "prompt" if options.prompt_only else options.task or ("similar" if options.image else None),
            "image": str(options.image) if options.image else None,  # its id, when it is uploaded
            "instruction": options.instruction or None,
            "prompt_mode": "verbatim" if options.verbatim else None,
            "size": options.size,
            "seed": options.seed,
            "num_inference_steps": options.steps,
            "n": options.n,
            "model": options.model,
            "negative_prompt": options.negative,
            "output_format": format_of(options.output),
        }
        request = GenerationRequest.model_validate({key: value for key, value in wishes.items() if value is not None})
    except ValidationError as error:
        faults = [(".".join(map(str, fault["loc"])), fault["msg"]) for fault in error.errors()]
        text = "; ".join(f"{where}: {what}".removeprefix(": ") for where, what in faults)
        complain(
            text.replace("Value error, ", ""), "Correct the command line; `llmga generate --help` lists the options."
        )
        return BAD_USAGE
    except OSError as error:
        complain(f"{options.image} cannot be read: {os.strerror(error.errno or 0)}", "Name a picture that is there.")
        return BAD_USAGE
    except ValueError as error:
        complain(str(error), "Choose another file name.")
        return BAD_USAGE
    with _client(options) as client:
        if picture is not None:
            request = request.model_copy(update={"image": client.upload(picture).id})
        outcome = generate(client, request, open_view(sys.stderr), output=options.output)
    return _report(outcome, as_json=options.json)


def _report(outcome: "Outcome", *, as_json: bool) -> int:
    from clients.generate import report
    from shared.contracts import JobStatus

    job = outcome.job
    if as_json:
        print(job.model_dump_json(indent=2, exclude_none=True))
    else:
        report(outcome)
    if job.error is not None:
        complain(f"{job.error.title}: {job.error.detail}", job.error.next_step)
    if job.status is JobStatus.CANCELED:
        print(f"job {job.id} was canceled", file=sys.stderr)
        return CANCELED
    return OK if job.status is JobStatus.SUCCEEDED else FAILED


def _list_jobs(options: argparse.Namespace) -> int:
    from datetime import UTC, datetime
    from itertools import islice

    from shared.contracts import JobStatus

    status = JobStatus(options.status) if options.status else None
    with _client(options) as client:
        jobs = list(islice(client.jobs(status=status), max(0, options.limit)))
    if options.json:
        print("[" + ",\n".join(job.model_dump_json(indent=2, exclude_none=True) for job in jobs) + "]")
        return OK
    for job in jobs:
        made = datetime.fromtimestamp(job.created_at, UTC).strftime("%Y-%m-%d %H:%M:%S")
        left = "" if job.eta_s is None else f"{job.eta_s:.0f} s left"
        about = [f"{job.status.value:<17}", f"{job.request.task.value:<13}", made, f"{left:<12}"]
        print("  ".join([job.id, *about, " ".join(job.request.instruction.split())[:60]]).rstrip())
    return OK


def _show(options: argparse.Namespace) -> int:
    with _client(options) as client:
        print(client.get(options.job).model_dump_json(indent=2, exclude_none=True))
    return OK


def _cancel(options: argparse.Namespace) -> int:
    with _client(options) as client:
        job = client.cancel(options.job)
    if options.json:
        print(job.model_dump_json(indent=2, exclude_none=True))
    else:
        print(f"{job.id} {job.status.value}")
    return OK


def _models(options: argparse.Namespace) -> int:
    import json

    if options.published:
        return _published(as_json=options.json)
    with _client(options) as client:
        models = client.models()
    if options.json:
        print(json.dumps(models, indent=2, ensure_ascii=False))
        return OK
    for model in models:
        about = [f"{model.get('stage', ''):<7}", f"{model.get('kind') or '':<7}", f"{model.get('size') or '':<9}"]
        about += ["ready" if model.get("ready") else "starting", "default" if model.get("default") else ""]
        print("  ".join([f"{model['id']:<32}", *about]).rstrip())
    return OK


def _published(*, as_json: bool) -> int:
    import json

    from shared.contracts.published import PUBLISHED

    if as_json:
        print(json.dumps([model.model_dump(mode="json") for model in PUBLISHED], indent=2))
        return OK
    head = ("HUB ID", "STAGE", "FAMILY", "LANGUAGES", "PARAMETERS", "GB AT 16 BITS", "8 BITS", "4 BITS")
    rows = [
        (
            model.hub_id,
            model.stage,
            model.family + (f" {model.task}" if model.task else "") + (" (superseded)" if model.superseded else ""),
            ",".join(model.languages),
            f"{model.parameters / 1e9:.2f} B",
            *(f"{size:.1f}" for size in model.memory_gb.values()),
        )
        for model in PUBLISHED
    ]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return OK


def _keys_file(options: argparse.Namespace) -> "KeysFile":
    from clients.keys import KeysFile
    from shared.contracts.keys import FILE_NAME

    named = options.keys_file or os.environ.get("LLMGA_AUTH__KEYS_FILE")
    return KeysFile(Path(named).expanduser() if named else _home(options) / FILE_NAME)


def _create_key(options: argparse.Namespace) -> int:
    file = _keys_file(options)
    key, token = file.create(options.tenant, options.note)
    print(f"key {key.id} of tenant {key.tenant} is in {file.path}; it is shown this once:", file=sys.stderr)
    print(token)
    return OK


def _list_keys(options: argparse.Namespace) -> int:
    from datetime import UTC, datetime

    keys = _keys_file(options).read().keys
    if options.json:
        import json

        print(json.dumps([key.model_dump(exclude={"sha256"}) for key in keys], indent=2, ensure_ascii=False))
        return OK
    for key in keys:
        made = datetime.fromtimestamp(key.created, UTC).strftime("%Y-%m-%d")
        state = "good" if key.revoked is None else "revoked"
        print("  ".join([key.id, f"{key.tenant:<24}", made, f"{state:<7}", key.note]).rstrip())
    return OK


def _revoke_key(options: argparse.Namespace) -> int:
    key = _keys_file(options).revoke(options.key)
    print(f"key {key.id} of tenant {key.tenant} is revoked", file=sys.stderr)
    return OK


def _up(options: argparse.Namespace) -> int:
    from clients.local.models import SHIPPED
    from clients.local.run import up

    up(_home(options), port=options.port, workers=options.workers, models=options.models or SHIPPED)
    return OK


def _demo(options: argparse.Namespace) -> int:
    from clients.local.run import demo
    from clients.view import open_view

    outcome = demo(_home(options), open_view(sys.stderr), out=options.out, port=options.port)
    if outcome.files:
        print(options.out / "demo.json")
    return _report(outcome, as_json=False)


if __name__ == "__main__":
    sys.exit(main())
