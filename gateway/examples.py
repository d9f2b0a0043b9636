"""Examples for the API's description; a test checks each against its model."""

from typing import Any

JOB_ID = "job_0f9c2ab47d1e4c55a1f0b3d2c4e5f607"
IMAGE_ID = "img_3b5d5c3712955042212316173ccf37be80ac3f51"
MASK_ID = "img_c1dfd96eea8cc2b62785275bca38ac261256e278"
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAAAXNSR0IArs4c6QAAAAxJ"
    "REFUeAFj+s/AAAADCQECFZY2rgAAAABJRU5ErkJggg=="
)

REQUESTS: dict[str, dict[str, Any]] = {
    "smallest": {
        "summary": "Everything else from the model's defaults",
        "value": {"instruction": "draw a snowman at night"},
    },
    "complete": {
        "summary": "Every choice made",
        "value": {
            "task": "text_to_image",
            "instruction": "draw a snowman at night",
            "negative_prompt": "blurry",
            "model": "llmga-tiny-sd15",
            "size": "128x128",
            "n": 2,
            "seed": 7,
            "num_inference_steps": 20,
            "guidance_scale": 7.5,
            "scheduler": "ddim",
            "lane": "interactive",
            "deadline_s": 60,
            "output_format": "png",
        },
    },
    "verbatim": {
        "summary": "Your own prompt, without the language model",
        "value": {"instruction": "a snowman at night, falling snow, blue light", "prompt_mode": "verbatim"},
    },
    "similar": {
        "summary": "A picture like an uploaded one",
        "value": {"task": "similar", "image": IMAGE_ID, "instruction": "at night"},
    },
    "inpaint": {
        "summary": "Paint the white part of a mask",
        "value": {"task": "inpaint", "image": IMAGE_ID, "mask": MASK_ID, "instruction": "a red ball"},
    },
    "outpaint": {
        "summary": "Extend a picture to both sides",
        "value": {"task": "outpaint", "image": IMAGE_ID, "outpaint": {"left": 64, "right": 64}},
    },
    "edit": {
        "summary": "Change what an instruction is about",
        "value": {"task": "edit", "image": IMAGE_ID, "instruction": "make it night"},
    },
    "prompt": {
        "summary": "A generation prompt only",
        "value": {"task": "prompt", "instruction": "draw a snowman at night"},
    },
    "approve": {
        "summary": "Hold the job until its prompt is approved",
        "value": {"instruction": "draw a snowman at night", "approve": True},
    },
}

REQUEST: dict[str, Any] = {
    "task": "text_to_image",
    "instruction": "draw a snowman at night",
    "prompt_mode": "refine",
    "approve": False,
    "negative_prompt": "",
    "model": "llmga-tiny-sd15",
    "size": "128x128",
    "n": 1,
    "seed": 3405691582,
    "num_inference_steps": 20,
    "guidance_scale": 7.5,
    "scheduler": "ddim",
    "prompt_encoding": "llmga",
    "max_prompt_tokens": 225,
    "lane": "interactive",
    "deterministic": True,
    "output_format": "png",
}
_IMAGE: dict[str, Any] = {
    "index": 0,
    "id": IMAGE_ID,
    "url": f"/v1/images/{IMAGE_ID}",
    "media_type": "image/png",
    "width": 128,
    "height": 128,
    "bytes": 24716,
    "sha256": "5f0c1f3a9a1d7f4be1b0f2d1c3e4a5968778695a4b3c2d1e0f9e8d7c6b5a4938",
    "seed": 3405691582,
}
_LINKS = {"self": f"/v1/jobs/{JOB_ID}", "events": f"/v1/jobs/{JOB_ID}/events"}

UPLOADED_IMAGE: dict[str, Any] = {
    "id": IMAGE_ID,
    "object": "image",
    "url": f"/v1/images/{IMAGE_ID}",
    "media_type": "image/png",
    "width": 768,
    "height": 512,
    "bytes": 524288,
    "sha256": "5f0c1f3a9a1d7f4be1b0f2d1c3e4a5968778695a4b3c2d1e0f9e8d7c6b5a4938",
}

QUEUED_JOB: dict[str, Any] = {
    "id": JOB_ID,
    "object": "job",
    "status": "queued",
    "stage": "prompt",
    "attempts": 0,
    "created_at": 1767225600.125,
    "updated_at": 1767225600.125,
    "request": REQUEST,
    "images": [],
    "queue": {"position": 2},
    "eta_s": 4.5,
    "timings": {},
    "links": {**_LINKS, "cancel": f"/v1/jobs/{JOB_ID}/cancel"},
}
SUCCEEDED_JOB: dict[str, Any] = {
    "id": JOB_ID,
    "object": "job",
    "status": "succeeded",
    "stage": "render",
    "attempts": 1,
    "created_at": 1767225600.125,
    "updated_at": 1767225602.75,
    "request": REQUEST,
    "prompt": {
        "text": "A snowman with a red scarf on a hill at night, falling snow, blue light.",
        "source": "mllm",
        "model": "llmga-tiny",
        "finish_reason": "stop",
        "completion_tokens": 24,
        "prompt_tokens": 19,
        "truncated_tokens": 0,
    },
    "images": [_IMAGE],
    "progress": {"step": 20, "total_steps": 20},
    "timings": {
        "prompt_queued_s": 0.004,
        "prompt_s": 0.61,
        "render_queued_s": 0.003,
        "render_s": 2.0,
        "total_s": 2.625,
    },
    "links": _LINKS,
}
JOBS: dict[str, Any] = {"object": "list", "data": [QUEUED_JOB, SUCCEEDED_JOB], "next": "1767225600125000"}

EVENTS: list[dict[str, Any]] = [
    {"id": "1767225600125-0", "type": "job.queued", "job_id": JOB_ID, "data": {"stage": "prompt"}},
    {
        "id": "1767225600129-0",
        "type": "job.started",
        "job_id": JOB_ID,
        "data": {"stage": "prompt", "attempt": 1, "worker": "gpu1-812-3fa2c1"},
    },
    {"id": "1767225600270-0", "type": "prompt.delta", "job_id": JOB_ID, "data": {"text": "A snowman with a"}},
    {
        "id": "1767225601401-0",
        "type": "render.progress",
        "job_id": JOB_ID,
        "data": {"index": 0, "step": 7, "total_steps": 20},
    },
    {
        "id": "1767225601433-0",
        "type": "render.preview",
        "job_id": JOB_ID,
        "data": {
            "index": 0,
            "step": 7,
            "total_steps": 20,
            "media_type": "image/jpeg",
            "width": 16,
            "height": 16,
            "data": "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAMCAgMC…",
        },
    },
    {"id": "1767225602750-1", "type": "job.succeeded", "job_id": JOB_ID, "data": {"images": [_IMAGE]}},
]
EVENT_STREAM = """retry: 1000

id: 1767225600125-0
event: job.queued
data: {"stage":"prompt"}

id: 1767225600129-0
event: job.started
data: {"stage":"prompt","attempt":1,"worker":"gpu1-812-3fa2c1"}

: ping

id: 1767225600270-0
event: prompt.delta
data: {"text":"A snowman with a"}

"""

WEBHOOK_TERMS: dict[str, Any] = {
    "origins": ["https://hooks.example.com:443"],
    "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwxVsW6M0qXvQ=",
}

MODELS: dict[str, Any] = {
    "object": "list",
    "data": [
        {
            "id": "llmga-tiny",
            "object": "model",
            "stage": "prompt",
            "ready": True,
            "workers": 1,
            "default": True,
            "tasks": ["text_to_image", "similar", "inpaint", "outpaint", "edit", "prompt"],
            "kind": "qwen2",
            "source": "llmga-tiny",
            "parameters": 1483200,
            "dtype": "float32",
            "max_model_len": 2048,
            "schedulers": [],
            "prompt_encodings": [],
        },
        {
            "id": "llmga-tiny-sd15",
            "object": "model",
            "stage": "render",
            "ready": True,
            "workers": 2,
            "default": True,
            "tasks": ["text_to_image", "similar", "inpaint", "outpaint", "edit"],
            "kind": "sd15",
            "size": "128x128",
            "max_side_px": 256,
            "num_inference_steps": 20,
            "guidance_scale": 7.5,
            "scheduler": "ddim",
            "schedulers": ["ddim", "euler", "unipc"],
            "prompt_encodings": ["llmga", "stock"],
            "max_prompt_tokens": {"llmga": 225, "stock": 75},
            "adapters": ["watercolor"],
            "restores": True,
        },
    ],
}
READY: dict[str, Any] = {
    "status": "ready",
    "missing": [],
    "stages": {
        "prompt": {"ready": True, "workers": 1, "phase": "ready", "detail": ""},
        "render": {"ready": True, "workers": 1, "phase": "ready", "detail": ""},
    },
}
NOT_READY: dict[str, Any] = {
    "status": "not_ready",
    "missing": ["prompt"],
    "stages": {
        "prompt": {"ready": False, "workers": 1, "phase": "loading", "detail": "vLLM loads the weights"},
        "render": {"ready": True, "workers": 1, "phase": "ready", "detail": ""},
    },
}
