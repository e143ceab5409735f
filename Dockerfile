# The image for `toklab submit --image`:
#   docker build --tag REGISTRY/toklab:1 .        then docker push
#   --build-arg PYTHON=3.13      a version that constraints/ has a file for
#   --build-arg EXTRAS=gpu,gcs   of pyproject.toml; hosts with GPUs take gpu in place of tpu
#   --build-arg RUN_AS=root      where a host lets nobody else use its accelerators
# It has never been built, as no registry was in reach; tests/test_dockerfile.py says what is checked instead.
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
ARG PYTHON
ARG EXTRAS=tpu,gcs
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY constraints/ constraints/
COPY tokenizer_lab/ tokenizer_lab/
COPY models/ models/
COPY data/ data/
COPY train/ train/
COPY configs/ configs/
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/toklab \
    && /opt/toklab/bin/pip install --constraint "constraints/python${PYTHON}.txt" ".[${EXTRAS}]"

FROM python:${PYTHON}-slim
ARG RUN_AS=toklab
RUN useradd --create-home --uid 1000 toklab
COPY --from=build /opt/toklab /opt/toklab
ENV PATH="/opt/toklab/bin:${PATH}" PYTHONUNBUFFERED=1
WORKDIR /home/toklab
USER ${RUN_AS}
# No entry point: `toklab submit` gives the whole command, its first word `toklab`.
CMD ["toklab", "--help"]
