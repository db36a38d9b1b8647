#!/usr/bin/env bash
# The whole path on one machine without a GPU: plan, review, train on 4 processes, verify, diff. `make demo` runs it.
set -euo pipefail
cd "$(dirname "$0")/.."

export OMP_NUM_THREADS=1
out=.demo
request=configs/demo-llama.yaml
text=src/autoplan/models/data/proverbs.txt
mkdir -p "$out"

step() { printf '\n\033[1m== %s\033[0m\n' "$*"; }

step "Plan a byte-level Llama for a 2x2 mesh of CPU processes"
autoplan plan "$request" --mesh 2x2 --hardware cpu-gloo -o "$out/plan-2x2.yaml"

step "What the plan decides, and what it costs"
autoplan show "$out/plan-2x2.yaml"

step "Train it for 30 steps on 4 processes, as the plan says"
torchrun --nproc-per-node 4 apply.py --plan "$out/plan-2x2.yaml" --data "$text" --steps 30

step "The same loss, gradients and collectives as one device"
autoplan verify "$out/plan-2x2.yaml"

step "The same model on 4x1, as a reviewer sees the difference"
autoplan plan "$request" --mesh 4x1 --hardware cpu-gloo -o "$out/plan-4x1.yaml"
autoplan diff "$out/plan-2x2.yaml" "$out/plan-4x1.yaml"
