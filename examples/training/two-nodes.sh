#!/bin/sh
# A student on two machines; run it on both, with a work folder that both see:
#   MAIN=10.0.0.1 NODE=0 sh examples/training/two-nodes.sh --workdir /shared/run --prompts captions.jsonl
#   MAIN=10.0.0.1 NODE=1 sh examples/training/two-nodes.sh --workdir /shared/run --prompts captions.jsonl
# MAIN: address of the first machine; NODE: number of this one; GPUS: of each machine (8); PORT: on the first (29500);
# RECIPE: flux (default) or qwen.
set -eu
exec accelerate launch --multi_gpu --num_machines 2 --num_processes $((2 * ${GPUS:-8})) --machine_rank "$NODE" \
	--main_process_ip "$MAIN" --main_process_port "${PORT:-29500}" \
	--mixed_precision no --dynamo_backend no -m arcflow.distill --recipe "${RECIPE:-flux}" "$@"
