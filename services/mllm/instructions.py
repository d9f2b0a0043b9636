"""How each task is put to the language model: what a person asked for becomes a user turn.

The models learned to write a generation prompt when they are asked for a picture (LLMGA.md §3.1, §3.2). A
request that already asks goes through as it is; a bare description gets the asking, in its own language.
"""

import re

from shared.contracts import GenerationRequest, Task

# Words with which people ask for a picture. At the start of an English request; anywhere in a Chinese one.
_ASKS_EN = re.compile(
    r"\W*(?:(?:please|kindly|now|can you|could you|would you|will you|i want you to|i'd like you to|let's)"
    r"\W+)*"
    r"(?:draw|paint|generate|create|make|show|give|design|sketch|render|illustrate|imagine|produce|depict|compose"
    r"|picture|visuali[sz]e|redraw|recreate|i want|i need|i would like|i'd like)\b",
    re.IGNORECASE,
)
_ASKS_ZH = re.compile(r"画|绘|生成|设计|创作|制作|给我|展示|我想要|我要|做一|来一|想象")
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")

_ASK_EN = "Generate an image of {}"
_ASK_ZH = "请生成一张图片：{}"


def is_chinese(text: str) -> bool:
    """Return whether the text is written in Chinese: at least every fifth letter is a Han character."""
    letters = sum(sign.isalpha() for sign in text)
    return letters > 0 and len(_HAN.findall(text)) * 5 >= letters


def question(request: GenerationRequest) -> str:
    """Return the user turn that puts this request to the model."""
    match request.task:
        case Task.TEXT_TO_IMAGE | Task.PROMPT:
            return _asking(request.instruction.strip())


def _asking(instruction: str) -> str:
    if is_chinese(instruction):
        return instruction if _ASKS_ZH.search(instruction) else _ASK_ZH.format(instruction)
    return instruction if _ASKS_EN.match(instruction) else _ASK_EN.format(instruction)
