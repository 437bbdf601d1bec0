# The HTTP service. Built from the repository's root:
#   docker build -f infra/docker/api.Dockerfile .
FROM python:3.11.13-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/darkroom
WORKDIR /src
COPY constraints.txt pyproject.toml README.md ./
COPY client client
COPY infra/darkroom_infra infra/darkroom_infra
COPY api api
COPY workers workers
RUN /opt/darkroom/bin/pip install --constraint constraints.txt ./client '.[api]'

FROM python:3.11.13-slim-bookworm
RUN useradd --uid 10001 --create-home --home-dir /home/darkroom --shell /usr/sbin/nologin darkroom
COPY --from=build /opt/darkroom /opt/darkroom
ENV PATH=/opt/darkroom/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
WORKDIR /home/darkroom
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=15s --retries=3 \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
ENTRYPOINT ["darkroom", "api"]
CMD ["--host", "0.0.0.0", "--port", "8000"]
