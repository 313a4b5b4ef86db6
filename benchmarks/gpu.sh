#!/usr/bin/env bash
# What alignvec claims about a GPU, measured on one card of the H100's class, in under 8 minutes:
# the gate against the base, folded weights and PEFT's mixed batch, plain and compiled; a step of
# training against TRL's; the fold of an 8B checkpoint. Random weights at real shapes.
#
#     benchmarks/gpu.sh OUT             results as JSON in OUT; without a GPU it says so and ends
#     benchmarks/gpu.sh OUT --tiny      the same at tiny shapes, on the CPU too: does it run?
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:?where the results go}
mkdir -p "$out"
shape=7b gate=(--blocks 32 --batches 1 8 32 128 --tokens 32) step=(--blocks 32 --pairs 16)
fold=(--shape 8b --blocks 32)
if [ "${2:-}" = --tiny ]; then
  shape=tiny gate=(--blocks 2 --batches 1 2 --tokens 2 --rounds 1) step=(--blocks 2 --rounds 1 --steps 2)
  fold=(--shape tiny --blocks 2 --rounds 1)
elif ! nvidia-smi > /dev/null 2>&1; then
  echo "no NVIDIA GPU here: skipped"
  exit 0
fi
python=${PYTHON:-}
if [ -z "$python" ]; then # an environment of its own
  python3 -m venv "$out/venv"
  python="$out/venv/bin/python"
  "$python" -m pip install -q -e '.[all]'
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
run() { # one that fails does not take the others with it
  echo "== $*"
  timeout "${LIMIT:-200}" "$python" "$@" || echo "failed: $*"
}
run benchmarks/gate_speed.py --shape $shape "${gate[@]}" --only base folded "gated 1" "gated 3" \
  "peft mixed" -o "$out/gate.json"
run benchmarks/gate_speed.py --shape $shape "${gate[@]}" --compile --only base "gated 3" \
  -o "$out/gate_compiled.json"
run benchmarks/step_speed.py --shape $shape "${step[@]}" -o "$out/step.json"
run benchmarks/fold_speed.py "${fold[@]}" --scratch "$scratch" -o "$out/fold.json"
