#!/bin/sh
# A student on eight GPUs of 80 GB:  sh examples/training/8x80.sh --prompts captions.jsonl [OPTIONS of arcflow.distill]
# RECIPE: flux (default) or qwen. Each GPU has the whole student; the recipe's batch is that of all eight.
set -eu
exec accelerate launch --multi_gpu --num_processes 8 --num_machines 1 --mixed_precision no --dynamo_backend no \
	-m arcflow.distill --recipe "${RECIPE:-flux}" \
	--cache-encodings "${ENCODINGS:-.work/encodings}" "$@"
