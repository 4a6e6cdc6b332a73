# The command line, without Python on the machine:
#
#   docker build --tag st_dimreduce --build-arg PIP_EXTRA_INDEX_URL=... .
#   docker run --rm --volume "$PWD:/data" --volume st_dimreduce:/home/user/.cache st_dimreduce \
#       reduce sentence-transformers/all-MiniLM-L6-v2 texts.txt --bytes 64 --output small
#
# The second volume keeps the models that were downloaded. The search page (`serve`) listens to its own machine alone,
# which a container is: examples/space has an image for it.
FROM python:3.12-slim AS wheel
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim
RUN useradd --create-home --uid 1000 user && mkdir /data /home/user/.cache && chown 1000 /data /home/user/.cache
# Where torch comes without the libraries of a GPU, gigabytes that are of no use here: the index of PyTorch's CPU builds.
ARG PIP_EXTRA_INDEX_URL
COPY constraints.txt /tmp/
# The wheel that was just built; what it needs in the versions of constraints.txt.
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --no-cache-dir --constraint /tmp/constraints.txt \
        "$(echo /wheels/*.whl)[faiss,onnx,parquet,report]"
USER 1000
WORKDIR /data
ENTRYPOINT ["st-dimreduce"]
CMD ["--help"]
