"""Examples of OpenAI's calls for the API's description; a test checks each against its model."""

import json
from typing import Any

from gateway.examples import IMAGE_ID, JOB_ID, PIXEL

_PNG_START = "iVBORw0KGgoAAAANSUhEUgAAAIAAAACACAIAAABMXPac"
_PROMPT = "A snowman with a red scarf on a hill at night, falling snow, blue light."
_USAGE: dict[str, Any] = {
    "input_tokens": 18,
    "output_tokens": 31,
    "total_tokens": 49,
    "input_tokens_details": {"text_tokens": 18, "image_tokens": 0},
    "output_tokens_details": {"text_tokens": 31, "image_tokens": 0},
}

IMAGE_REQUESTS: dict[str, dict[str, Any]] = {
    "smallest": {
        "summary": "Everything else from the model's defaults",
        "value": {"prompt": "draw a snowman at night"},
    },
    "complete": {
        "summary": "OpenAI's fields, and two of ours",
        "value": {
            "prompt": "draw a snowman at night",
            "model": "llmga-tiny-sd15",
            "n": 2,
            "size": "128x128",
            "quality": "high",
            "output_format": "jpeg",
            "output_compression": 90,
            "response_format": "url",
            "seed": 7,
            "negative_prompt": "blurry",
        },
    },
    "streamed": {
        "summary": "Two pictures on the way",
        "value": {"prompt": "draw a snowman at night", "stream": True, "partial_images": 2},
    },
}
IMAGES: dict[str, Any] = {
    "created": 1767225602,
    "background": "opaque",
    "data": [{"b64_json": _PNG_START, "revised_prompt": _PROMPT, "id": IMAGE_ID, "seed": 3405691582}],
    "output_format": "png",
    "quality": "medium",
    "size": "128x128",
    "usage": _USAGE,
    "job_id": JOB_ID,
}
PARTIAL_IMAGE: dict[str, Any] = {
    "type": "image_generation.partial_image",
    "b64_json": _PNG_START,
    "background": "opaque",
    "created_at": 1767225601,
    "output_format": "png",
    "quality": "medium",
    "size": "128x128",
    "image_index": 0,
    "partial_image_index": 0,
}
COMPLETED: dict[str, Any] = {
    "type": "image_generation.completed",
    "b64_json": _PNG_START,
    "background": "opaque",
    "created_at": 1767225602,
    "output_format": "png",
    "quality": "medium",
    "size": "128x128",
    "image_index": 0,
    "usage": _USAGE,
    "url": f"http://127.0.0.1:8080/v1/images/{IMAGE_ID}",
    "revised_prompt": _PROMPT,
    "id": IMAGE_ID,
    "seed": 3405691582,
    "job_id": JOB_ID,
}
IMAGE_STREAM = "".join(
    f"event: {event['type']}\ndata: {json.dumps(event, separators=(',', ':'))}\n\n"
    for event in (PARTIAL_IMAGE, COMPLETED)
)

CHAT_REQUESTS: dict[str, dict[str, Any]] = {
    "words": {
        "summary": "A question",
        "value": {"model": "llmga-tiny", "messages": [{"role": "user", "content": "draw a snowman at night"}]},
    },
    "picture": {
        "summary": "A question about a picture, its answer rendered",
        "value": {
            "model": "llmga-tiny",
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "draw it at night"},
                        {"type": "image_url", "image_url": {"url": PIXEL}},
                    ],
                }
            ],
            "render": {"size": "128x128", "seed": 7},
        },
    },
}
_CHAT_HEAD: dict[str, Any] = {"id": "chatcmpl-5d41402abc4b", "created": 1767225602, "model": "llmga-tiny"}
_SAID = f"<gen_image> {_PROMPT} </gen_image>"
CHAT: dict[str, Any] = {
    **_CHAT_HEAD,
    "object": "chat.completion",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": _SAID, "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 42, "completion_tokens": 31, "total_tokens": 73},
    "generation_prompts": [_PROMPT],
}
_CHUNKS: list[dict[str, Any]] = [
    {"delta": {"role": "assistant", "content": ""}, "finish_reason": None},
    {"delta": {"content": _SAID}, "finish_reason": None},
    {"delta": {}, "finish_reason": "stop"},
]
CHAT_STREAM = (
    "".join(
        "data: "
        + json.dumps(
            {**_CHAT_HEAD, "object": "chat.completion.chunk", "choices": [{"index": 0, "logprobs": None, **chunk}]},
            separators=(",", ":"),
        )
        + "\n\n"
        for chunk in _CHUNKS
    )
    + "data: [DONE]\n\n"
)
