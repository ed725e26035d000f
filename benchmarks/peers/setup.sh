#!/usr/bin/env bash
# Installs a system that raglane is compared with, with all that it needs: setup.sh infinity|hayhooks [DIR]
# DIR (.peers in the repository if left out) gets the environment DIR/NAME and the model DIR/cross-encoder.
# PYTHON names the interpreter; raglane's own environment makes the model.
set -euo pipefail
repository=$(cd "$(dirname "$0")/../.." && pwd)

name=${1:-}
peers=${2:-$repository/.peers}
lock=$repository/benchmarks/peers/$name.lock
if [ -z "$name" ] || [ ! -f "$lock" ]; then
    echo "usage: setup.sh infinity|hayhooks [DIR]" >&2
    exit 2
fi

find_python() {
    for candidate in ${PYTHON:-} python3.11 python3.12 python3; do
        # Both locks hold numpy 1.26, which has no builds for later Pythons.
        if command -v "$candidate" >/dev/null &&
            "$candidate" -c 'import sys; raise SystemExit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "$name needs Python 3.11 or 3.12; set PYTHON=..." >&2
    return 1
}

python=$(find_python)
mkdir -p "$peers"
peers=$(cd "$peers" && pwd)
venv=$peers/$name
if [ ! -x "$venv/bin/python" ]; then "$python" -m venv "$venv"; fi
pip() { "$venv/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }

if [ "$(uname -s)" = Linux ]; then
    torch=$(grep '^torch==' "$lock")
    # The registry's Linux build of torch is the CUDA one, gigabytes with what it needs; it computes on CPUs as well.
    # The CPU build has a version of its own and comes from an index that PIP_EXTRA_INDEX_URL may name.
    pip install --no-deps "$torch+cpu" 2>/dev/null || pip install "$torch"
fi
pip install --no-deps -r "$lock"
pip check

if [ ! -e "$peers/cross-encoder/model.safetensors" ]; then
    (cd "$repository" && .venv/bin/python -m benchmarks.peers.make_cross_encoder --out "$peers/cross-encoder")
fi
echo "$name is installed in $venv"
