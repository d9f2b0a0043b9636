"""Conversation templates of the LLMGA families: how a conversation becomes the text that the model continues.

Templates are data: what comes before the first user text, between a user text and the answer, and so on
(LLMGA.md §2). A rendered conversation is a list of texts with a picture between each two of them, never one
string with a marker in it: so nothing that a person types can be taken for a picture, and each text is
tokenized on its own (LLMGA.md §1.7).

Deviation from the released command lines: an answer in the history ends with its terminator once, as in
training; there, it is doubled from the second turn on (LLMGA.md §4).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

SystemPrompt = Literal["trained", "cli"]


@dataclass(frozen=True)
class Template:
    """One family's conversation format; `{system}` in `opening` is the system prompt.

    opening: everything before the first user text.
    asking: from the end of a user text to where the model starts to write.
    answering: between `asking` and an answer that is history; the model writes this itself.
    terminator: what the model writes to end its answer.
    next_user: between a terminator and the next user text.
    """

    family: str
    system: str
    opening: str
    asking: str
    terminator: str
    next_user: str
    stop: tuple[str, ...]
    answering: str = ""
    cli_system: str | None = None

    def start(self, system_prompt: SystemPrompt = "trained", *, own_system: str | None = None) -> str:
        """Return the text before the first user text; `own_system` takes the system prompt's place.

        Families without a system prompt read it as the beginning of the first user text.
        """
        if own_system is not None:
            if "{system}" in self.opening:
                return self.opening.replace("{system}", own_system)
            return f"{self.opening}{own_system}\n\n"
        system = self.system
        if system_prompt == "cli" and self.cli_system is not None:
            system = self.cli_system
        return self.opening.replace("{system}", system)


_ASSISTANT = (
    "A chat between a curious {person} and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the {person}'s questions."
)
_LLAMA3_USER = "<|start_header_id|>user<|end_header_id|>\n\n"
_LLAMA2_OPENING = "[INST] <<SYS>>\n{system}\n<</SYS>>\n\n"

VICUNA = Template(
    family="vicuna",
    system=_ASSISTANT.format(person="user"),
    cli_system=_ASSISTANT.format(person="human"),
    opening="{system} USER: ",
    asking=" ASSISTANT:",
    answering=" ",
    terminator="</s>",
    next_user="USER: ",
    stop=("</s>",),
)
LLAMA3 = Template(
    family="llama3",
    system=(
        "You are a helpful language and vision assistant. You are able to understand the visual content "
        "that the user provides, and assist the user with a variety of tasks using natural language."
    ),
    opening="<|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>" + _LLAMA3_USER,
    # The assistant's turn has the system's header: the published models were trained so.
    asking="<|eot_id|><|start_header_id|>system<|end_header_id|>\n\n",
    terminator="<|eot_id|>",
    next_user=_LLAMA3_USER,
    stop=("<|eot_id|>", "<|end_of_text|>"),
)
MISTRAL = Template(
    family="mistral",
    system="",
    opening=_LLAMA2_OPENING,  # with its empty system block
    asking=" [/INST]",
    answering=" ",
    terminator=" </s>",
    next_user="<s>[INST] ",
    stop=("</s>",),
)
QWEN2 = Template(
    family="qwen2",
    system=(
        "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and honest answers."
    ),
    opening="<|im_start|>system\n{system}<|im_end|><|im_start|>user\n",
    asking="<|im_end|><|im_start|>assistant\n",
    terminator="<|im_end|>",
    next_user="<|im_start|>user\n",
    stop=("<|im_end|>", "<|endoftext|>"),
)
PHI3 = Template(
    family="phi3",
    system="",
    opening="<|user|>\n",
    asking="<|end|>\n<|assistant|>\n",
    terminator="<|end|>",
    next_user="\n<|user|>\n",
    stop=("<|end|>", "<|endoftext|>"),
)
GEMMA = Template(
    family="gemma",
    system="",
    opening="<start_of_turn>user\n",
    asking="<end_of_turn>\n<start_of_turn>model\n",
    terminator="<end_of_turn>\n<eos>",
    next_user="<start_of_turn>user\n",
    stop=("<end_of_turn>", "<eos>"),
)
LLAMA2 = Template(
    family="llama2",
    system=(
        "You are LLMGA, a useful language and vision generation assistant. You can generate images "
        "according to the user's requirements. If the user wants you to inpaint or outpaint images, please "
        "imagine what is in the black mask parts of the image. If image generation is required, please "
        "provide a detailed description of the generated images in the form of "
        "<gen_image> DETAILED DESCRIPTION </gen_image>."
    ),
    opening=_LLAMA2_OPENING,
    asking=" [/INST]",
    answering=" ",
    terminator=" </s>",
    next_user="<s>[INST] ",
    stop=("</s>",),
)

TEMPLATES = {template.family: template for template in (VICUNA, LLAMA3, MISTRAL, QWEN2, PHI3, GEMMA, LLAMA2)}


@dataclass(frozen=True)
class Turn:
    """What a person said, and what was answered; `answer` is None in the turn that is to be answered."""

    question: str
    answer: str | None = None


def render(
    template: Template,
    turns: Sequence[Turn],
    *,
    has_image: bool = False,
    system_prompt: SystemPrompt = "trained",
    own_system: str | None = None,
) -> list[str]:
    """Return the texts of a conversation; between each two of them stands a picture.

    The picture comes before the first question, with a newline after it, as in training. Answers must not
    hold their terminator.

    Raises:
        ValueError: there is no turn, or a turn other than the last has no answer.
    """
    if not turns or any(turn.answer is None for turn in turns[:-1]):
        raise ValueError("a conversation has at least one turn, and all but the last are answered")
    texts = [template.start(system_prompt, own_system=own_system)]
    if has_image:
        texts.append("\n")
    for index, turn in enumerate(turns):
        texts[-1] += (template.next_user if index else "") + turn.question + template.asking
        if turn.answer is not None:
            texts[-1] += template.answering + turn.answer + template.terminator
    return texts
