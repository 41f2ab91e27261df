#!/bin/sh
# A student on one GPU of 80 GB:  sh examples/training/1x80.sh --prompts captions.jsonl [OPTIONS of arcflow.distill]
# RECIPE: flux (default) or qwen. Prompts are encoded first and kept, so that text encoders need no memory beside.
set -eu
exec accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
	-m arcflow.distill --recipe "${RECIPE:-flux}" \
	--cache-encodings "${ENCODINGS:-.work/encodings}" "$@"
