"""How each task is put to the language model: what a person asked for becomes a user turn.

The models learned to write a generation prompt when they are asked for a picture (LLMGA.md §3.1, §3.2). A
request that already asks goes through as it is; a bare description, or no words at all, gets the asking, in
its own language. There is one wording per task and language, so that the same request is always put the same
way. All wordings are our own, but for `SOURCE_CAPTION`.
"""

import re
from enum import StrEnum


class Writing(StrEnum):
    """What the language model is to write.

    | task | picture | the answer | an answer without tags |
    |---|---|---|---|
    | `text_to_image` | – | the prompt of a picture | is the prompt; `fallback` says so |
    | `describe` | may be | a description, in words alone | is what was asked for |
    | `similar` | yes | the prompt of a picture like it | is the prompt; `fallback` says so |
    | `inpaint`, `outpaint` | yes, black where something is missing | the prompt of the whole | the same |
    | `edit` | yes | two answers: the caption as it is, the prompt of the edited picture | the same |
    | `story` | may be | a text with several prompts | the same |
    | `answer` | may be | words (VQA and chat) | is what was asked for |
    """

    TEXT_TO_IMAGE = "text_to_image"
    DESCRIBE = "describe"
    SIMILAR = "similar"
    INPAINT = "inpaint"
    OUTPAINT = "outpaint"
    EDIT = "edit"
    STORY = "story"
    ANSWER = "answer"


# Of which one prompt is wanted, and nothing else.
PICTURES = frozenset({Writing.TEXT_TO_IMAGE, Writing.SIMILAR, Writing.INPAINT, Writing.OUTPAINT, Writing.EDIT})

# The first turn of an edit, which gives the caption of the picture as it is. The released editing has exactly
# this text (LLMGA.md §3.2), so it is kept for every language.
SOURCE_CAPTION = "Generate a similar image"

# Words with which people ask for a picture. At the start of an English request; anywhere in a Chinese one.
_ASKS_EN = re.compile(
    r"\W*(?:(?:please|kindly|now|can you|could you|would you|will you|i want you to|i'd like you to|let's)"
    r"\W+)*"
    r"(?:draw|paint|generate|create|make|show|give|design|sketch|render|illustrate|imagine|produce|depict|compose"
    r"|picture|visuali[sz]e|redraw|recreate|i want|i need|i would like|i'd like)\b",
    re.IGNORECASE,
)
_ASKS_ZH = re.compile(r"画|绘|生成|设计|创作|制作|给我|展示|我想要|我要|做一|来一|想象")
_TELLS_EN = re.compile(
    r"\W*(?:please\W+|can you\W+|could you\W+)*(?:write|tell|compose|invent|narrate)\b", re.IGNORECASE
)
_TELLS_ZH = re.compile(r"写|讲|编")
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")

# What asks for more than one picture: a kind of work that has several, or a number of them.
_SEVERAL_EN = re.compile(
    r"\b(?:(?:bedtime |short |illustrated |picture )?stor(?:y|ies)|fairy ?tale|picture ?book|comic|storyboard"
    r"|(?:several|multiple|many|two|three|four|five|six|seven|eight|nine|ten|[2-9]|1\d)"
    r" (?:\w+ ){0,2}(?:pictures|images|illustrations|photos|drawings|paintings|panels|posters|logos|designs|variants)"
    r"|(?:series|sequence|set) of (?:\w+ ){0,2}(?:pictures|images|illustrations|photos|drawings|paintings|posters|logos"
    r"|designs))\b",
    re.IGNORECASE,
)
_SEVERAL_ZH = re.compile(r"故事|童话|绘本|漫画|连环画|分镜|系列|多张|几张|(?:[2-9二两三四五六七八九十]|1\d)\s*[张幅]")

_WORDS_PER_TOKEN = 0.66  # of English in CLIP's vocabulary, with the signs between them; on the careful side
# LLMGA's captions fit into this many tokens by training. Where there is room for as many, asking for brevity
# would only move the request away from what the models have learned.
UNASKED_TOKENS = 200


_EN = {
    Writing.TEXT_TO_IMAGE: "Generate an image of {}",
    Writing.DESCRIBE: "Describe in rich detail, in one paragraph, what a picture of this would show: {}",
    Writing.SIMILAR: "Generate another image that looks like this one",
    Writing.INPAINT: "The black areas of this picture are missing. Generate the complete image, with them filled in",
    Writing.OUTPAINT: "This scene goes on where its border is black. Generate the whole wider image",
    Writing.STORY: "Write an illustrated story, and generate an image for each part of it: {}",
}
_ZH = {
    Writing.TEXT_TO_IMAGE: "请生成一张图片：{}",
    Writing.DESCRIBE: "请用一段话详细描写这样一幅画面：{}",
    Writing.SIMILAR: "请再生成一张与这张图相像的图片",
    Writing.INPAINT: "这张图的黑色部分缺失了。请补全缺失的部分，生成完整的图片",
    Writing.OUTPAINT: "画面在黑色边框处继续延伸。请把画面扩展开来，生成更大的完整图片",
    Writing.STORY: "请写一个图文故事，并为每一段生成一张图片：{}",
}
_DESCRIBE_PICTURE = ("Describe in rich detail what this picture shows", "请详细描述这张图片的内容")
_AGAIN = ("Generate the image again, with this change: {}", "请按下面的要求修改，重新生成图片：{}")
_LIMIT = ("Use at most {} words for the description of the image.", "图片描述请不要超过{}个英文单词。")


def is_chinese(text: str) -> bool:
    """Return whether the text is written in Chinese: at least every fifth letter is a Han character."""
    letters = sum(sign.isalpha() for sign in text)
    return letters > 0 and len(_HAN.findall(text)) * 5 >= letters


def wants_several(instruction: str) -> bool:
    """Return whether a request is for several pictures: a story, a comic, a series, a number of them."""
    return bool(_SEVERAL_EN.search(instruction) or _SEVERAL_ZH.search(instruction))


def question(
    task: Writing,
    instruction: str,
    *,
    has_picture: bool = False,
    goes_on: bool = False,
    max_prompt_tokens: int | None = None,
) -> str:
    """Return the user turn that puts this to the model; of an edit, the second.

    goes_on: whether a picture was asked for before, so that a bare description says what is to change in it.
    max_prompt_tokens: how long a prompt the diffusion model takes, in tokens of its text encoder; the model is
    asked for few words where that is little. It counts words, not those tokens, so it may miss.
    """
    instruction = instruction.strip()
    chinese = is_chinese(instruction)
    asked = _put(task, instruction, has_picture=has_picture, goes_on=goes_on, chinese=chinese)
    if max_prompt_tokens is None or max_prompt_tokens >= UNASKED_TOKENS or task is Writing.ANSWER:
        return asked
    limit = _LIMIT[chinese].format(int(max_prompt_tokens * _WORDS_PER_TOKEN))
    if chinese:
        return f"{asked}{'' if asked.endswith(('。', '！', '？')) else '。'}{limit}"
    return f"{asked}{'' if asked.endswith(('.', '!', '?')) else '.'} {limit}"


def _put(task: Writing, instruction: str, *, has_picture: bool, goes_on: bool, chinese: bool) -> str:
    wordings = _ZH if chinese else _EN
    match task:
        case Writing.EDIT | Writing.ANSWER:
            return instruction
        case Writing.TEXT_TO_IMAGE:
            asking = _AGAIN[chinese] if goes_on else wordings[task]
            return instruction if _asks(instruction, chinese) else asking.format(instruction)
        case Writing.STORY:
            is_told = _asks(instruction, chinese) or bool((_TELLS_ZH if chinese else _TELLS_EN).search(instruction))
            return instruction if is_told else wordings[task].format(instruction)
        case Writing.SIMILAR:
            is_asked = _asks(instruction, chinese)
            return instruction if is_asked else _with(wordings[task], instruction, chinese)
        case Writing.DESCRIBE if not has_picture:
            return wordings[task].format(instruction)
        case Writing.DESCRIBE:
            return _with(_DESCRIBE_PICTURE[chinese], instruction, chinese)
        case Writing.INPAINT | Writing.OUTPAINT:
            return _with(wordings[task], instruction, chinese)


def _asks(instruction: str, chinese: bool) -> bool:
    return bool(_ASKS_ZH.search(instruction) if chinese else _ASKS_EN.match(instruction))


def _with(asking: str, instruction: str, chinese: bool) -> str:
    """Return the asking alone, or with a person's words behind it."""
    if chinese:
        return f"{asking}：{instruction}" if instruction else f"{asking}。"
    return f"{asking}: {instruction}" if instruction else f"{asking}."
