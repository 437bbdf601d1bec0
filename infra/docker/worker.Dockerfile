# One decode worker, for the CPU unless TORCH_INDEX_URL names another build of torch. Build from
# the root of the repository:
#   docker build --file infra/docker/worker.Dockerfile --tag darkroom-worker:0.1.0 .
#   docker build --file infra/docker/worker.Dockerfile --tag darkroom-worker-gpu:0.1.0 \
#     --build-arg TORCH_INDEX_URL=https://download.pytorch.org/whl/cu130 .

ARG PYTHON_IMAGE=python:3.11.15-slim-bookworm

FROM ${PYTHON_IMAGE} AS builder
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
# The environment gets no pip of its own: the builder's pip installs into it from outside.
RUN python -m venv --without-pip /opt/darkroom
COPY infra/docker/build-requirements.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --requirement build-requirements.txt
COPY constraints.txt ./
# Torch alone, and before the sources: it is by far the largest part, and changes the least. What
# it needs (for CUDA, NVIDIA's libraries too) comes below from the ordinary index; pip then finds this
# build of torch in place and leaves it.
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python /opt/darkroom/bin/python install --no-deps --constraint constraints.txt \
        --index-url "${TORCH_INDEX_URL}" torch
COPY pyproject.toml README.md LICENSE ./
COPY client client
COPY infra/darkroom_infra infra/darkroom_infra
COPY workers workers
COPY api api
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheels ./client .
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python /opt/darkroom/bin/python install --constraint constraints.txt \
        /wheels/darkroom-*.whl "$(echo /wheels/darkroom_server-*.whl)[worker]"

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="darkroom-worker" \
      org.opencontainers.image.description="Darkroom: a decode worker" \
      org.opencontainers.image.licenses="Apache-2.0"
# VAEs from the hub are kept in a volume, so that a new container does not fetch them again.
ENV PATH=/opt/darkroom/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/var/cache/huggingface \
    HF_HUB_DISABLE_TELEMETRY=1
RUN groupadd --gid 10001 darkroom \
    && useradd --uid 10001 --gid 10001 --no-log-init --create-home --shell /usr/sbin/nologin darkroom \
    && install --directory --owner=darkroom --group=darkroom "${HF_HOME}"
COPY --from=builder /opt/darkroom /opt/darkroom
COPY infra/docker/worker_health.py /usr/local/lib/darkroom/worker_health.py
VOLUME ["/var/cache/huggingface"]
USER 10001:10001
WORKDIR /home/darkroom
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "/usr/local/lib/darkroom/worker_health.py"]
ENTRYPOINT ["darkroom"]
CMD ["worker"]
