#!/bin/sh
# Regenerate dmi/_pb from the .proto sources. usage: proto/generate.sh [OUTDIR]   (default: the repository)
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
out=${1:-$root}
python=${PYTHON:-$root/.venv/bin/python}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
# The module path decides the import lines of the generated code, so the sources are laid out as the package is.
mkdir -p "$tmp/dmi/_pb" "$out/dmi/_pb"
cp "$root/proto/dmi/v1beta1/api.proto" "$tmp/dmi/_pb/api.proto"
"$python" -m grpc_tools.protoc -I "$tmp" --python_out="$out" --pyi_out="$out" --grpc_python_out="$out" dmi/_pb/api.proto
