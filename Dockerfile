# The server alone, in a container. docs/deploy.md tells how to build and run it.
#
#     docker build -t benchlib .                                     torch's default build: CUDA, and a CPU does too
#     docker build -t benchlib:cpu --build-arg TORCH_INDEX=<url> .   a smaller build, from PyTorch's index for CPUs
#
# It holds no model and no secret. Models come into the volume /models, and a key by BENCHLIB_API_KEY at the start.

ARG PYTHON=3.11

# 1) Install the tested set into a folder. pip and its leavings stay in this stage.
FROM python:${PYTHON}-slim-bookworm AS build
ARG TORCH_INDEX=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv /opt/benchlib
ENV PATH=/opt/benchlib/bin:$PATH
WORKDIR /source
COPY requirements.txt requirements-hashed.txt ./
RUN pip install --no-deps --require-hashes -r requirements-hashed.txt
# Its version stands in requirements.txt; it has no hash, since its builds differ by index.
# hadolint ignore=DL3013
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$(grep '^torch==' requirements.txt)"
COPY pyproject.toml README.md LICENSE ./
COPY benchlib benchlib
RUN pip install --no-deps --no-build-isolation .

# 2) The image: that folder, a compiler, and a user without rights
FROM python:${PYTHON}-slim-bookworm
# Triton compiles a launcher with gcc at run time, for the recipes that compile. Debian keeps one version per release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home benchlib \
    && install --directory --owner benchlib --group benchlib /models
COPY --from=build /opt/benchlib /opt/benchlib
ENV PATH=/opt/benchlib/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/models/hub \
    BENCHLIB_CACHE=/models/benchlib \
    NUMBA_CACHE_DIR=/models/numba \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
# By number, so that a cluster can see that it is not root.
USER 10001
WORKDIR /home/benchlib
VOLUME /models
EXPOSE 8000
# /health answers while a model loads, and no more once the engine has broken.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
CMD ["python", "-m", "benchlib", "serve", "--host", "0.0.0.0", "--port", "8000"]
