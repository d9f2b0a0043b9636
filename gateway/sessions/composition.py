"""A turn becomes a request: what it leaves open is taken from the turns before it. Pure: offers are passed in."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from gateway.offers import Offers
from gateway.sessions.tree import image_of, is_under_way, path_to, source_of, told, turn_of
from shared.contracts import FieldProblem, GenerationPrompt, GenerationRequest, PromptMode, Task
from shared.contracts.generation import parse_size
from shared.contracts.sessions import PictureSource, Session, Turn, TurnRecord, TurnRequest
from shared.errors import InvalidRequest, TurnUnderWay
from shared.validation import validation_problem

_Fields = dict[str, Any]

_PLACES = frozenset({"parent", "refers_to", "rerender"})  # fields of a turn that are none of a request
# What a turn has from the one whose picture it is about, so that they look alike; each has its own seed.
_WHOLE = frozenset({Task.TEXT_TO_IMAGE, Task.SIMILAR, Task.EDIT})  # `size` is that of their pictures
_LOOKS = ("model", "negative_prompt", "prompt_encoding", "adapters")
_PACE = ("num_inference_steps", "guidance_scale", "scheduler")  # of turns of the same task
# What does not change the prompt, and so may be said anew when it is rendered once more.
_RENDERED = frozenset(
    {
        *_LOOKS,
        *_PACE,
        "size",
        *("n", "seed", "strength", "feather_px", "restore", "guidance_rescale", "guidance_interval", "clip_skip"),
        *("edit_strength", "source_guidance_scale", "keep_unmasked", "debug", "webhook"),
        *("lane", "deadline_s", "deterministic", "output_format", "output_compression", "previews"),
    }
)


@dataclass(frozen=True, slots=True)
class Composed:
    """A turn as a request of its own, and how it came about; `prompt`: the one to be rendered once more."""

    request: GenerationRequest
    parent: int | None
    task_chosen_by: Literal["client", "session"]
    prompt: GenerationPrompt | None = None
    rerender_of: int | None = None
    source: PictureSource | None = None
    history: Sequence[int] = ()

    def record(self, request: GenerationRequest) -> TurnRecord:
        """Return what is kept of the turn, given the request with every value filled in."""
        return TurnRecord(
            parent=self.parent,
            rerender_of=self.rerender_of,
            source=self.source,
            task_chosen_by=self.task_chosen_by,
            history=list(self.history),
            request=request.model_copy(update={"history": ()}),
        )


def compose(wanted: TurnRequest, session: Session, offers: Offers) -> Composed:
    """Return the request that a turn stands for.

    Raises:
        InvalidRequest: it names what is not in the session, or its fields make no sense together.
        TurnUnderWay: the turn that it goes on from has not ended.
    """
    if wanted.rerender is not None:
        return _rerendered(wanted, session, wanted.rerender)
    parent = _parent(wanted, session)
    path = path_to(session, parent)
    if wanted.image is not None and wanted.refers_to is not None:
        raise _problem("refers_to", "contradiction", "'image' names another picture already")
    source = None
    if wanted.image is None:
        source = source_of(session, path, wanted.instruction, wanted.refers_to)
    image = wanted.image if source is None else image_of(session, source)
    if image is None and source is not None:
        raise _problem("refers_to", "not_found", "that turn has no such picture")
    if source is not None and source.chosen_by != "latest":
        path = path_to(session, turn_of(session, source.turn))  # what was said after that picture is about others
    task = wanted.task or _task(wanted, has_picture=image is not None, is_shown=wanted.image is not None, offers=offers)
    given = _given(wanted) | {"task": task}
    if task is not Task.TEXT_TO_IMAGE and image is not None:
        given["image"] = image
    numbers: list[int] = []
    if "history" not in given and wanted.prompt_mode is PromptMode.REFINE:
        numbers, given["history"] = told(path)
    return Composed(
        request=_request(_inherited(wanted, session, source, task, offers) | given),
        parent=None if parent is None else parent.id,
        task_chosen_by="session" if wanted.task is None else "client",
        source=source,
        history=numbers,
    )


def _parent(wanted: TurnRequest, session: Session) -> Turn | None:
    number = len(session.turns) if wanted.parent is None else wanted.parent
    turn = turn_of(session, number)
    if number and turn is None:
        raise _not_found("parent")
    if turn is not None and is_under_way(turn):
        raise TurnUnderWay(f"Turn {number}, which this one goes on from, has not ended.")
    return turn


def _task(wanted: TurnRequest, *, has_picture: bool, is_shown: bool, offers: Offers) -> Task:
    """Return the task of a turn that names none; `is_shown`: the picture came with the turn."""
    if wanted.mask is not None:
        return Task.INPAINT
    if wanted.outpaint is not None:
        return Task.OUTPAINT
    if not has_picture or wanted.prompt_mode is PromptMode.VERBATIM:
        return Task.TEXT_TO_IMAGE
    if not wanted.instruction:
        return Task.SIMILAR
    if _can_edit(wanted.model, offers):
        return Task.EDIT
    return Task.SIMILAR if is_shown else Task.TEXT_TO_IMAGE  # the words of the path say what the picture is like


def _can_edit(model: str | None, offers: Offers) -> bool:
    renders = any(Task.EDIT in one.tasks for name, one in offers.render_models.items() if model in (None, name))
    return renders and Task.EDIT in (offers.prompt_tasks or ())


def _inherited(
    wanted: TurnRequest, session: Session, source: PictureSource | None, task: Task, offers: Offers
) -> _Fields:
    turn = None if source is None else turn_of(session, source.turn)
    if source is None or turn is None or task not in _WHOLE:
        return {}
    before, model = turn.request, offers.render_models.get(turn.request.model or "")
    if model is None or task not in model.tasks or wanted.model not in (None, model.name):
        return {}
    fields = {name: getattr(before, name) for name in (*_LOOKS, *(_PACE if before.task is task else ()))}
    made = next(image for image in turn.images if image.index == source.index)
    size = f"{made.width}x{made.height}"
    return fields | {"size": size} if _is_size(size, model.max_side_px) else fields


def _is_size(size: str, max_side_px: int) -> bool:
    try:
        return max(parse_size(size)) <= max_side_px
    except ValueError:  # a picture that was extended, or painted in part, may have any
        return False


def _given(wanted: TurnRequest) -> _Fields:
    return {name: getattr(wanted, name) for name in wanted.model_fields_set - _PLACES}


def _rerendered(wanted: TurnRequest, session: Session, number: int) -> Composed:
    turn = turn_of(session, number)
    if turn is None:
        raise _not_found("rerender")
    if turn.prompt is None or turn.request.task is Task.PROMPT:
        raise _problem("rerender", "not_found", "that turn has no prompt to render")
    for name in sorted(wanted.model_fields_set - _RENDERED - {"rerender"}):
        raise _problem(name, "contradiction", "a prompt that is rendered once more stays as it is; leave this out")
    as_before = {name: getattr(turn.request, name) for name in GenerationRequest.model_fields}
    anew = {"approve": False, "deadline_s": None, "previews": 0, "webhook": None}
    return Composed(
        request=_request(as_before | anew | _given(wanted)),
        parent=turn.parent,
        task_chosen_by=turn.task_chosen_by,
        prompt=turn.prompt.model_copy(update={"prompt_tokens": None, "truncated_tokens": None}),
        rerender_of=number,
        source=turn.source,
        history=turn.history,
    )


def _request(fields: _Fields) -> GenerationRequest:
    try:
        return GenerationRequest.model_validate(fields)
    except ValidationError as error:
        raise validation_problem(error, GenerationRequest) from None


def _not_found(field: str) -> InvalidRequest:
    return _problem(field, "not_found", "there is no turn of this number in the session")


def _problem(field: str, code: str, message: str) -> InvalidRequest:
    problem = FieldProblem(field=field, code=code, message=message)
    return InvalidRequest(f"The turn was not accepted because of: {field}.", errors=[problem])
