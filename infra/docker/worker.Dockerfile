# One decode worker for one device. Built from the repository's root, for a CPU by default:
#   docker build -f infra/docker/worker.Dockerfile .
# and for a GPU with the wheels of a CUDA version:
#   docker build -f infra/docker/worker.Dockerfile \
#     --build-arg TORCH_INDEX_URL=https://download.pytorch.org/whl/cu128 .
FROM python:3.11.13-slim-bookworm AS build
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/darkroom
WORKDIR /src
COPY constraints.txt ./
RUN /opt/darkroom/bin/pip install --constraint constraints.txt --index-url "$TORCH_INDEX_URL" torch
COPY pyproject.toml README.md ./
COPY client client
COPY infra/darkroom_infra infra/darkroom_infra
COPY api api
COPY workers workers
RUN /opt/darkroom/bin/pip install --constraint constraints.txt ./client '.[worker]'

FROM python:3.11.13-slim-bookworm
RUN useradd --uid 10001 --create-home --home-dir /home/darkroom --shell /usr/sbin/nologin darkroom \
  && install --directory --owner=10001 --group=10001 /models
COPY --from=build /opt/darkroom /opt/darkroom
# Weights from the hub are kept in a volume.
ENV PATH=/opt/darkroom/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HF_HOME=/models
USER 10001:10001
WORKDIR /home/darkroom
VOLUME ["/models"]
STOPSIGNAL SIGTERM
# The process itself is watched by the restart policy. Beside it, that Redis is in reach: without
# it a worker gets no work.
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 \
  CMD ["python", "-c", "import os, redis; redis.Redis.from_url(os.environ['DARKROOM_REDIS_URL'], socket_timeout=3).ping()"]
ENTRYPOINT ["darkroom", "worker"]
