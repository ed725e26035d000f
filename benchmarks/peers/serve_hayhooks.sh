#!/usr/bin/env bash
# Serves POST /search_rerank/run by hayhooks at 127.0.0.1: serve_hayhooks.sh PORT [OPTION...]
# Options go to `hayhooks run`. PEERS names the folder that setup.sh was given, if it was not .peers.
set -euo pipefail
cd "$(dirname "$0")/../.."

port=${1:?usage: serve_hayhooks.sh PORT [OPTION...]}
shift
peers=${PEERS:-.peers}
for needed in hayhooks/bin/hayhooks cross-encoder/model.safetensors; do
    if [ ! -e "$peers/$needed" ]; then
        echo "there is no $peers/$needed; run benchmarks/peers/setup.sh hayhooks" >&2
        exit 1
    fi
done
if [ ! -e "$peers/passages.faiss" ]; then
    echo "there is no $peers/passages.faiss; index the passages as benchmarks/peers/README.md says" >&2
    exit 1
fi

export PEER_CROSS_ENCODER=$peers/cross-encoder PEER_INDEX=$peers/passages
# No model hub and no usage statistics. Nothing is traced: hayhooks records every request for its dashboard otherwise.
export HF_HUB_OFFLINE=1 HAYSTACK_TELEMETRY_ENABLED=False
exec "$peers/hayhooks/bin/hayhooks" run \
    --host 127.0.0.1 --port "$port" --pipelines-dir benchmarks/peers/hayhooks_pipelines \
    --without-tracing --without-monitoring "$@"
