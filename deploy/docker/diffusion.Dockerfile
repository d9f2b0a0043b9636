# One worker of the render stage. Build from the repository's root:
#   docker build -f deploy/docker/diffusion.Dockerfile -t llmga-serve/diffusion .
# The torch that PyPI offers runs on NVIDIA GPUs and on CPUs. A smaller CPU image comes from an index of CPU builds:
#   --build-arg TORCH_INDEX=<its URL>
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/llmga
ARG TORCH_INDEX=""
# By itself and first: gigabytes that a change of ours must not download again.
RUN /opt/llmga/bin/pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch==2.13.0
WORKDIR /src
COPY requirements/cpu.txt requirements/cpu.txt
COPY pyproject.toml README.md LICENSE ./
COPY clients clients
COPY training training
COPY gateway gateway
COPY shared shared
COPY services services
RUN /opt/llmga/bin/pip install --constraint requirements/cpu.txt ".[diffusion]"

FROM ${PYTHON_IMAGE} AS runtime
RUN groupadd --gid 10001 llmga \
    && useradd --uid 10001 --gid llmga --no-create-home --home-dir /var/lib/llmga --shell /usr/sbin/nologin llmga \
    && install -d -o llmga -g llmga -m 0750 /var/lib/llmga /srv/artifacts
COPY --from=build /opt/llmga /opt/llmga
# PYTHONSAFEPATH: nothing is imported from the working directory. The caches are on the home's volume, since the
# image is read-only and files in /tmp cannot be executed.
ENV PATH=/opt/llmga/bin:$PATH \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HUB_OFFLINE=1 \
    XDG_CACHE_HOME=/var/lib/llmga/cache \
    TORCHINDUCTOR_CACHE_DIR=/var/lib/llmga/cache/inductor \
    TRITON_CACHE_DIR=/var/lib/llmga/cache/triton \
    LLMGA_HOME=/var/lib/llmga \
    LLMGA_ARTIFACTS__URL=file:///srv/artifacts \
    LLMGA_METRICS_HOST=0.0.0.0
USER 10001:10001
WORKDIR /var/lib/llmga
EXPOSE 9103
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9103/livez', timeout=4)"]
ENTRYPOINT ["python", "-m", "services.diffusion"]
