# The language model service: vLLM's own server with our plugin. Build from the repository's root:
#   docker build -f deploy/docker/mllm.Dockerfile -t llmga-serve/mllm .                            for NVIDIA GPUs
#   docker build -f deploy/docker/mllm.Dockerfile -t llmga-serve/mllm:cpu --build-arg DEVICE=cpu . for CPUs (AVX2)
ARG DEVICE=gpu
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm
ARG VLLM_IMAGE=vllm/vllm-openai:v0.32.0

# A wheel of this project, the same for both.
FROM ${PYTHON_IMAGE} AS wheel
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY clients clients
COPY training training
COPY gateway gateway
COPY shared shared
COPY services services
RUN pip wheel --no-deps --wheel-dir /wheels .

# GPU: the official image brings vLLM, torch and CUDA as they were tested together; only what it lacks is added.
FROM ${VLLM_IMAGE} AS gpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY requirements/cpu.txt /tmp/pins.txt
RUN grep -E '^(redis|pydantic-settings)==' /tmp/pins.txt > /tmp/added.txt \
    && python3 -m pip install --requirement /tmp/added.txt \
    && rm /tmp/pins.txt /tmp/added.txt

# CPU: torch first, then the complete pinned list without dependencies (docs/decisions/0005).
FROM ${PYTHON_IMAGE} AS cpu-build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/llmga
ARG TORCH_INDEX=""
RUN /opt/llmga/bin/pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch==2.13.0
COPY requirements/cpu.txt requirements/cpu.txt
RUN /opt/llmga/bin/pip install --no-deps --requirement requirements/cpu.txt

FROM ${PYTHON_IMAGE} AS cpu
# libnuma: vLLM's CPU kernels ask it where memory is.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libnuma1 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=cpu-build /opt/llmga /opt/llmga
ENV PATH=/opt/llmga/bin:$PATH

FROM ${DEVICE} AS runtime
USER root
COPY --from=wheel /wheels /wheels
RUN python3 -m pip install --no-cache-dir --no-deps /wheels/*.whl \
    && rm -r /wheels \
    && groupadd --gid 10001 llmga \
    && useradd --uid 10001 --gid llmga --no-create-home --home-dir /var/lib/llmga --shell /usr/sbin/nologin llmga \
    && install -d -o llmga -g llmga -m 0750 /var/lib/llmga /srv/artifacts
# PYTHONSAFEPATH: nothing is imported from the working directory. The caches are on the home's volume, since the
# image is read-only and files in /tmp cannot be executed.
ENV PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/var/lib/llmga \
    XDG_CACHE_HOME=/var/lib/llmga/cache \
    TORCHINDUCTOR_CACHE_DIR=/var/lib/llmga/cache/inductor \
    TRITON_CACHE_DIR=/var/lib/llmga/cache/triton \
    LLMGA_HOME=/var/lib/llmga \
    LLMGA_ARTIFACTS__URL=file:///srv/artifacts \
    LLMGA_METRICS_HOST=0.0.0.0
USER 10001:10001
WORKDIR /var/lib/llmga
EXPOSE 8001 9102
# A large checkpoint is converted and loaded meanwhile: /livez answers from the first second, /readyz when it is done.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9102/livez', timeout=4)"]
ENTRYPOINT ["python3", "-m", "services.mllm"]
