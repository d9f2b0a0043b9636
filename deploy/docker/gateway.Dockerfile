# The public REST server. Build from the repository's root:
#   docker build -f deploy/docker/gateway.Dockerfile -t llmga-serve/gateway .
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/llmga
WORKDIR /src
COPY requirements/cpu.txt requirements/cpu.txt
COPY pyproject.toml README.md LICENSE ./
COPY clients clients
COPY training training
COPY services services
COPY shared shared
COPY gateway gateway
# The list holds more than the gateway needs: as constraints it only says which versions.
RUN /opt/llmga/bin/pip install --constraint requirements/cpu.txt ".[gateway]"

FROM ${PYTHON_IMAGE} AS runtime
RUN groupadd --gid 10001 llmga \
    && useradd --uid 10001 --gid llmga --no-create-home --home-dir /var/lib/llmga --shell /usr/sbin/nologin llmga \
    && install -d -o llmga -g llmga -m 0750 /var/lib/llmga /srv/artifacts
COPY --from=build /opt/llmga /opt/llmga
# PYTHONSAFEPATH: nothing is imported from the working directory.
ENV PATH=/opt/llmga/bin:$PATH \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    LLMGA_HOME=/var/lib/llmga \
    LLMGA_ARTIFACTS__URL=file:///srv/artifacts \
    LLMGA_GATEWAY__HOST=0.0.0.0 \
    LLMGA_METRICS_HOST=0.0.0.0
USER 10001:10001
WORKDIR /var/lib/llmga
EXPOSE 8080 9101
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/livez', timeout=4)"]
ENTRYPOINT ["python", "-m", "gateway"]
