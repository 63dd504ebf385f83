#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# start_client.sh vllm|sglang [MODEL [ARGUMENT...]]: the engine's own benchmark against start_server.sh.
# Variables: PORT and PYTHON as there; NUM_PROMPTS (100), REQUEST_RATE (4 a second), INPUT_LEN and OUTPUT_LEN
# (256 tokens each).
set -euo pipefail

engine=${1:-}
model=${2:-meta-llama/Llama-3.1-8B-Instruct}
python=${PYTHON:-python}
prompts=${NUM_PROMPTS:-100} rate=${REQUEST_RATE:-4} input=${INPUT_LEN:-256} output=${OUTPUT_LEN:-256}
[ $# -lt 2 ] && set -- "$@" "$model"

case $engine in
vllm)
    # What "vllm bench serve" does, in every build of vLLM.
    exec "$python" -c '
from vllm.benchmarks import serve
from vllm.utils.argparse_utils import FlexibleArgumentParser

parser = FlexibleArgumentParser()
serve.add_cli_args(parser)
serve.main(parser.parse_args())
' --backend vllm --model "$model" --port "${PORT:-12346}" --dataset-name random \
        --random-input-len "$input" --random-output-len "$output" --num-prompts "$prompts" \
        --request-rate "$rate" "${@:3}"
    ;;
sglang | sgl)
    exec "$python" -m sglang.bench_serving --backend sglang --model "$model" --port "${PORT:-30000}" \
        --dataset-name random --random-input-len "$input" --random-output-len "$output" \
        --num-prompts "$prompts" --request-rate "$rate" "${@:3}"
    ;;
*)
    echo "usage: start_client.sh vllm|sglang [MODEL [ARGUMENT...]]" >&2
    exit 2
    ;;
esac
