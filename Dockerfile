# Everything is installed from the lock files, and the server runs as a user without rights. One image for GPUs and CPUs:
# torch brings CUDA, and our kernels for both are compiled here.

FROM rust:1.95-slim-trixie AS wheel
# Debian keeps one version of a package: a pin would break the build at the next security update.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ make python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY requirements/bootstrap.txt requirements/
RUN python3 -m venv /build \
    && /build/bin/pip install --quiet --no-cache-dir --require-hashes -r requirements/bootstrap.txt
COPY . .
RUN PATH="/build/bin:$PATH" maturin build --release --locked --out /dist

# What changes with the lock files only: gigabytes, which stay in layers of their own.
FROM python:3.13-slim-trixie AS dependencies
COPY requirements /requirements
# Without dependencies: the demo model has another inference stack, FlashInfer what kernels want that we do not call.
# nvcc comes with FlashInfer, which finds it, and cuBLAS's headers, beside torch. Triton is for torch.compile, which
# nothing calls, and a gigabyte.
# Compiled, since the user of the image cannot write what Python compiles.
RUN install() { uv pip install --quiet --no-cache --compile-bytecode --require-hashes "$@"; } \
    && pip install --quiet --no-cache-dir --require-hashes -r /requirements/bootstrap.txt \
    && python -m venv --without-pip /opt/lorikeet \
    && install --python /opt/lorikeet/bin/python -r /requirements/runtime.txt \
    && install --python /opt/lorikeet/bin/python --no-deps -r /requirements/cuda.txt -r /requirements/demo.txt \
    && uv pip uninstall --quiet --python /opt/lorikeet/bin/python triton

FROM dependencies AS kernels
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
COPY --from=wheel /dist /dist
RUN uv pip install --quiet --no-cache --python /opt/lorikeet/bin/python --no-deps /dist/*.whl \
    && /opt/lorikeet/bin/python -m lorikeet_server.kernels.cpu.build --ahead \
    && /opt/lorikeet/bin/python -m lorikeet_server.kernels.cuda.build --ahead

FROM python:3.13-slim-trixie
# FlashInfer alone compiles where it runs, since there are too many combinations of type, width, window and GPU: its kernels
# for one model, once, with what is in this image. Mount a volume on /home/lorikeet/.cache to keep what it makes.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 lorikeet \
    && install --directory --owner lorikeet --group root --mode 775 /home/lorikeet /home/lorikeet/.cache
COPY --from=dependencies /opt /opt
RUN --mount=type=bind,from=wheel,source=/dist,target=/dist \
    pip --python /opt/lorikeet/bin/python install --quiet --no-cache-dir --no-index --no-deps /dist/*.whl
COPY --from=kernels /opt/lorikeet/share/lorikeet /opt/lorikeet/share/lorikeet
USER 10001
# A container's own loopback is reachable by nobody: listen on all of its addresses, and publish the port where wanted.
# Another port is set in PORT, where the health check finds it too, and not with --port.
# OpenShift runs it as a user of its own choice, in the group root, for whom HOME would be `/`.
# The model is a variable, so that one which is set goes before it, as a flag does.
# The last two ask NVIDIA's container runtime for the driver; nobody else reads them.
ENV PATH="/opt/lorikeet/bin:$PATH" \
    HOME=/home/lorikeet \
    MODEL_ID=smollm2 \
    LORIKEET_HOSTNAME=0.0.0.0 \
    PORT=3000 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
EXPOSE 3000
HEALTHCHECK --start-period=10m CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['PORT'] + '/health', timeout=5)"]
# As of other servers' images, what follows the image's name are flags.
ENTRYPOINT ["lorikeet", "serve"]
