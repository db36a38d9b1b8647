#!/usr/bin/env bash
# The whole table on four GPUs of one host, in some eight minutes: benchmarks/runtime/four.sh FOLDER
# Hand-written and planned steps of a size in turns in one call; of the whole 8B, which does not fit beside itself, pair by pair.
set -uo pipefail
cd "$(dirname "$0")/../.."
out=${1:?where to write}/h200x4-table.jsonl
run() { timeout "$1" torchrun --standalone --nproc-per-node 4 benchmarks/runtime/side_by_side.py --out "$out" "${@:2}" || echo "ended with $?: ${*:2}" >&2; }

run 170 --size 1b --profile best
run 170 --size 8b_l8 --profile best
run 80 --size 8b --settings hand:fsdp/head small-4 data-4 --rounds 3
run 80 --size 8b --settings hand:fsdp+tp data-tensor-2x2 small-2x2 --rounds 3
run 80 --size 8b --settings hand:tp tensor-1x4 small-1x4 --rounds 3
run 60 --size 8b --settings floor --rounds 3
python benchmarks/runtime/table.py "$out"
