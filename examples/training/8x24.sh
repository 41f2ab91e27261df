#!/bin/sh
# A student on eight GPUs of 24 GB:  sh examples/training/8x24.sh --prompts captions.jsonl [OPTIONS of arcflow.distill]
# RECIPE: flux (default) or qwen. The GPUs share the weights; each takes two images of the batch of 16.
set -eu
exec accelerate launch --multi_gpu --num_processes 8 --num_machines 1 --mixed_precision no --dynamo_backend no \
	-m arcflow.distill --recipe "${RECIPE:-flux}" \
	--shard --cache-encodings "${ENCODINGS:-.work/encodings}" "$@"
