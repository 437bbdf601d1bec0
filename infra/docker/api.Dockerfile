# The HTTP service. Build from the root of the repository:
#   docker build --file infra/docker/api.Dockerfile --tag darkroom-api:0.1.0 .

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
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY client client
COPY infra/darkroom_infra infra/darkroom_infra
COPY workers workers
COPY api api
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheels ./client .
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python /opt/darkroom/bin/python install --constraint constraints.txt \
        /wheels/darkroom-*.whl "$(echo /wheels/darkroom_server-*.whl)[api]"

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="darkroom-api" \
      org.opencontainers.image.description="Darkroom: the HTTP service" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV PATH=/opt/darkroom/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
RUN groupadd --gid 10001 darkroom \
    && useradd --uid 10001 --gid 10001 --no-log-init --create-home --shell /usr/sbin/nologin darkroom
COPY --from=builder /opt/darkroom /opt/darkroom
USER 10001:10001
WORKDIR /home/darkroom
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
ENTRYPOINT ["darkroom"]
CMD ["api", "--host", "0.0.0.0", "--port", "8000"]
