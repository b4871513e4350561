# The image of docker-compose.yml: the locked packages, this checkout, and no way to become root. README: "Container".
#
#     docker compose build
#     docker build --tag vit24h:0.1.0 .                 without compose
#     docker build --build-arg BASE_IMAGE=... .         on another base: Debian or Ubuntu with Python 3.11 or 3.12
#
# Ordered by how often things change: system, packages (5 GB), code. Needs BuildKit (DOCKER_BUILDKIT=1 before Docker 23)
# and a network; what runs later needs none. No `syntax` line: nothing here is beyond BuildKit's own front end, and with
# one it would be fetched.
ARG BASE_IMAGE=nvidia/cuda:13.0.1-base-ubuntu24.04@sha256:f8ef28f579ea42a44b415d2c5d46f788e6a9b395c6c83f2929416e1fc192c143


# --- system and packages: rebuilt when the lock or the bootstrap changes ---
FROM ${BASE_IMAGE} AS packages

# A compiler and Python's headers: torch.compile (Triton on a GPU, C++ on a CPU) builds its kernels at run time.
# Versions are the distribution's, and the base is pinned: naming them would break the build at their next update.
# hadolint ignore=DL3008
RUN --mount=type=cache,target=/var/lib/apt/lists,sharing=locked \
    apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        g++ gcc libc6-dev python3 python3-dev python3-venv \
    && rm -rf /var/cache/apt/*.bin

WORKDIR /opt/vit24h
COPY requirements.lock ./
COPY setup/bootstrap.py setup/
# pip's cache outlives the layer: a changed lock fetches what changed.
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -I setup/bootstrap.py create /opt/venv


# --- what runs: rebuilt in seconds when the code changes ---
FROM packages AS runtime

ENV VIT24H_VENV=/opt/venv \
    PATH=/opt/venv/bin:$PATH \
    # Any user id will do, with or without an entry in /etc/passwd: what wants a name or a home gets these.
    HOME=/tmp \
    USER=vit24h \
    LOGNAME=vit24h \
    VIT24H_CACHE=/tmp/vit24h-cache \
    PYTHONUNBUFFERED=1

COPY . .
# The checkout may have been private to its owner; the user who runs this is another one.
ARG BASE_IMAGE
RUN docker/write_build_id.sh "$BASE_IMAGE" build-id \
    && setup/bootstrap.sh python -m compileall -q src \
    && chmod -R a+rX . \
    && mkdir runs

# Last, as they differ between commits that change nothing else. VERSION is compared with the package's by a test.
ARG VERSION=0.1.0
ARG COMMIT=
ENV VIT24H_COMMIT=$COMMIT
LABEL org.opencontainers.image.title="vit24h" \
      org.opencontainers.image.description="A Vision Transformer from scratch in 24 hours on one GPU" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$COMMIT" \
      org.opencontainers.image.base.name="$BASE_IMAGE"

USER 1000:1000
ENTRYPOINT ["/opt/vit24h/docker/entrypoint.sh"]
CMD ["vit24h", "--help"]


# --- the same with what only the tests need ---
FROM runtime AS test
USER 0:0
RUN --mount=type=cache,target=/root/.cache/pip \
    HOME=/root setup/bootstrap.sh --test true
USER 1000:1000
# Nothing can be written beside the code.
ENV PYTEST_ADDOPTS="-p no:cacheprovider" \
    HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis \
    RUFF_CACHE_DIR=/tmp/ruff
CMD ["tests/run.sh"]


# The last stage is what `docker build` without --target makes.
FROM runtime
