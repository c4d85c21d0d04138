#!/bin/sh
# Says what this machine lacks for `make setup`, and how to get it, before gigabytes are fetched in vain.
python=${1:-python3}
cd "$(dirname "$0")/.." || exit
rust=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
status=0

lacks() {
    echo "missing: $1: $2" >&2
    status=1
}

has() {
    command -v "$1" >/dev/null
}

if ! has "$python" || ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    lacks "$python, 3.11 or newer" "install it, or name it: make setup PYTHON3=python3.12"
elif ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    lacks "venv of $("$python" --version)" "apt-get install python3-venv"
fi
present=$(cargo --version 2>/dev/null | cut -d ' ' -f 2)
if [ "$(printf '%s\n' "$rust" "${present:-0}" | sort --version-sort | head -n 1)" != "$rust" ]; then
    lacks "cargo, $rust or newer${present:+, not $present}" "install Rust as https://rustup.rs says, or run rustup update"
fi
if ! has cc || { ! has g++ && ! has c++ && ! has clang++; }; then
    lacks "a C++ compiler" "apt-get install g++"
fi
exit $status
