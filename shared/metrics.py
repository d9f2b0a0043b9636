"""Every Prometheus metric of the project, in one registry.

Names are `llmga_<what>_<unit>[_total]`. Labels are bounded: `route` is a route's template, never a path;
`method` is a method that some route has, or `other`; `model` is a configured name; the rest are values of
enumerations. A job's, tenant's or request's id is never a label.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

REGISTRY = CollectorRegistry(auto_describe=True)
ProcessCollector(
    registry=REGISTRY
)  # process_*: memory, CPU seconds and open files, under the names that dashboards know

# From a cached read to the longest `Prefer: wait` (300 s).
_HTTP_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
# From an idle worker's claim (milliseconds) to a queue that is an hour behind.
_WAIT_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3_600)
# From the tiny pair on a CPU (0.2 s) to an edit on a busy GPU.
_STAGE_BUCKETS_S = (0.1, 0.25, 0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 45, 60, 120, 300, 600)
# One forward pass: 5 ms (SD1.5, H100) to a full bucket on a CPU.
_FORWARD_BUCKETS_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10)
# Rows are padded to buckets that are powers of two.
_ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

HTTP_REQUESTS = Counter(
    "llmga_http_requests_total",
    "HTTP requests that were answered.",
    ["method", "route", "status"],
    registry=REGISTRY,
)
HTTP_SECONDS = Histogram(
    "llmga_http_request_duration_seconds",
    "Seconds from the first byte of a request to the last byte of its answer; event streams are left out.",
    ["method", "route"],
    buckets=_HTTP_BUCKETS_S,
    registry=REGISTRY,
)
SSE_FOLLOWERS = Gauge("llmga_sse_followers", "Event streams that are open now.", registry=REGISTRY)

LIMITED_REQUESTS = Counter(
    "llmga_limited_requests_total", "Requests refused by a limit of their tenant.", ["limit"], registry=REGISTRY
)
JOBS_SUBMITTED = Counter(
    "llmga_submitted_jobs_total", "Jobs accepted into the queue.", ["task", "lane"], registry=REGISTRY
)
JOBS_FINISHED = Counter(
    "llmga_finished_jobs_total",
    "Jobs that ended, by the stage in which they did and how.",
    ["stage", "status"],
    registry=REGISTRY,
)
QUEUE_DEPTH_JOBS = Gauge(
    "llmga_queue_depth_jobs", "Jobs that wait for a worker now.", ["stage", "lane"], registry=REGISTRY
)
QUEUE_WAIT_SECONDS = Histogram(
    "llmga_queue_wait_seconds",
    "Seconds that a job waited for a stage before a worker claimed it, by the queue's clock.",
    ["stage"],
    buckets=_WAIT_BUCKETS_S,
    registry=REGISTRY,
)
STAGE_SECONDS = Histogram(
    "llmga_stage_duration_seconds",
    "Seconds from the claim of a stage to its end, by the queue's clock.",
    ["stage"],
    buckets=_STAGE_BUCKETS_S,
    registry=REGISTRY,
)
LEASES_LOST = Counter(
    "llmga_lost_leases_total",
    "Leases that this worker lost while it was at work: expired, or the job was canceled.",
    ["stage"],
    registry=REGISTRY,
)
JOBS_RECLAIMED = Counter(
    "llmga_reclaimed_jobs_total",
    "Jobs that this process took from a silent worker and put back into the queue or failed.",
    ["stage"],
    registry=REGISTRY,
)
DEAD_LETTERS_JOBS = Gauge(
    "llmga_dead_letter_jobs", "Jobs kept as dead letters, to be looked at and replayed.", registry=REGISTRY
)
WORKERS = Gauge(
    "llmga_live_workers", "Workers whose announcement has not expired.", ["stage", "phase"], registry=REGISTRY
)

BODY_BYTES = Gauge("llmga_held_body_bytes", "Bytes of request bodies that this gateway holds now.", registry=REGISTRY)

WEBHOOK_DELIVERIES = Counter(
    "llmga_webhook_deliveries_total",
    "Attempts to deliver webhooks, by how they ended: delivered, failed (tried again) or dead (given up).",
    ["outcome"],
    registry=REGISTRY,
)
WEBHOOK_QUEUE_DELIVERIES = Gauge(
    "llmga_webhook_queue_deliveries", "Webhooks that wait to be delivered, or are under way.", registry=REGISTRY
)
WEBHOOK_DEAD_DELIVERIES = Gauge(
    "llmga_webhook_dead_deliveries", "Webhooks that were given up, and are kept to be looked at.", registry=REGISTRY
)

PROMPT_TOKENS = Counter(
    "llmga_prompt_tokens_total", "Tokens that the language model generated for jobs.", registry=REGISTRY
)
PROMPT_FALLBACKS = Counter(
    "llmga_fallback_prompts_total",
    "Answers without a pair of `<gen_image>` tags, by the rule that made the prompt from them.",
    ["rule"],
    registry=REGISTRY,
)
TIME_TO_FIRST_DELTA_SECONDS = Histogram(
    "llmga_time_to_first_delta_seconds",
    "Seconds from the claim of the prompt stage to the first characters of the generation prompt.",
    buckets=(0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2.5, 5, 10, 30),
    registry=REGISTRY,
)

UNET_ROWS = Histogram(
    "llmga_unet_rows", "Rows per UNet call, without padding.", buckets=_ROW_BUCKETS, registry=REGISTRY
)
UNET_SECONDS = Histogram(
    "llmga_unet_duration_seconds", "Seconds per UNet call.", buckets=_FORWARD_BUCKETS_S, registry=REGISTRY
)
DIFFUSION_STEPS = Counter(
    "llmga_diffusion_steps_total", "Denoising steps done, counted per picture.", ["model"], registry=REGISTRY
)
MODEL_LOAD_SECONDS = Histogram(
    "llmga_model_load_duration_seconds",
    "Seconds to load a checkpoint and to measure what it can do here.",
    ["model"],
    buckets=(0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300),
    registry=REGISTRY,
)
LOADED_MODEL_BYTES = Gauge(
    "llmga_loaded_model_bytes",
    "Memory that a checkpoint's weights take now; 0 when it is not loaded.",
    ["model"],
    registry=REGISTRY,
)
PREVIEWS = Counter("llmga_previews_total", "Previews of pictures under way that were sent.", registry=REGISTRY)
RECOMPILES = Counter(
    "llmga_diffusion_recompiles_total",
    "Graphs of a UNet that were compiled after the warm-up; 0 is what should be.",
    registry=REGISTRY,
)
IMAGES = Counter("llmga_finished_images_total", "Pictures finished.", ["model", "format"], registry=REGISTRY)
SEAM_SCORE_LEVELS = Histogram(
    "llmga_seam_score_levels",
    "Steps across the border of what was painted, in finished pictures, of 255 levels; by how it was finished.",
    ["restoration"],
    buckets=(0.5, 1, 2, 5, 10, 15, 20, 30, 50, 100),
    registry=REGISTRY,
)
RESTORE_SECONDS = Histogram(
    "llmga_restore_duration_seconds",
    "Seconds per pass of the restoration network.",
    buckets=_STAGE_BUCKETS_S,
    registry=REGISTRY,
)
RESTORED_TOGETHER = Histogram(
    "llmga_restore_batch_images",
    "Pictures per pass of the restoration network.",
    buckets=(1, 2, 3, 4, 6, 8, 16, 32, 64),
    registry=REGISTRY,
)
ENCODE_SECONDS = Histogram(
    "llmga_encode_duration_seconds",
    "Seconds to compress one picture as a file.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
    registry=REGISTRY,
)
VAE_SECONDS = Histogram(
    "llmga_vae_duration_seconds",
    "Seconds to decode the latents of one picture.",
    buckets=_FORWARD_BUCKETS_S,
    registry=REGISTRY,
)
