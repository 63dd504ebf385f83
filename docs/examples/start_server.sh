#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# start_server.sh vllm|sglang [MODEL [ARGUMENT...]]: an engine whose KV cache is borrowed from kvcachedd.
# Variables: PORT (default 12346 for vllm, 30000 for sglang), PYTHON (of the engine's environment).
set -euo pipefail

engine=${1:-}
model=${2:-meta-llama/Llama-3.1-8B-Instruct}
python=${PYTHON:-python}
[ $# -lt 2 ] && set -- "$@" "$model"
export ENABLE_KVCACHED=${ENABLE_KVCACHED:-true}

case $engine in
vllm)
    # The module, not the command: it is there in every build of vLLM.
    exec "$python" -m vllm.entrypoints.openai.api_server --model "$model" --port "${PORT:-12346}" "${@:3}"
    ;;
sglang | sgl)
    exec "$python" -m sglang.launch_server --model-path "$model" --port "${PORT:-30000}" "${@:3}"
    ;;
*)
    echo "usage: start_server.sh vllm|sglang [MODEL [ARGUMENT...]]" >&2
    exit 2
    ;;
esac
