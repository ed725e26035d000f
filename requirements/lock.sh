#!/usr/bin/env bash
# Resolves requirements/*.in into locks with names and versions only. Needs uv.
set -euo pipefail
cd "$(dirname "$0")"

resolve() {
    uv pip compile --quiet --universal --python-version 3.11 --no-annotate --no-header --no-emit-index-url "$@"
}

resolve --override cpu.overrides cpu.in -o cpu.lock
resolve gpu.in -o gpu.lock
resolve dev.in -o dev.lock
