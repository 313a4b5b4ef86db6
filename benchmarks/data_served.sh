#!/usr/bin/env bash
# Personas to clean records against a real server: `transformers serve` with the embedded model.
#
#     benchmarks/data_served.sh OUT [PERSONAS]
#
# Needs fastapi and uvicorn (alignvec[ui] brings them). The model is small: what it writes is poor,
# and what counts is that every record is there, clean or with the reason why it is not.
set -euo pipefail
out=$1 personas=${2:-8}
mkdir -p "$out"
model=$(python -c 'from alignvec.base.source import find_base; print(find_base("embedded"))')
transformers serve "$model" --port 8765 > "$out/server.log" 2>&1 &
trap 'kill %1' EXIT
until curl -s -o /dev/null http://127.0.0.1:8765/health; do sleep 1; done

writer=(--spectrum medical --endpoint http://127.0.0.1:8765/v1 --model "$model" --concurrency 4)
alignvec data personas "${writer[@]}" --create "$personas" --temperature 0.7 -o "$out/personas.jsonl"
alignvec data queries "$out/personas.jsonl" "${writer[@]}" --each 2 -o "$out/queries.jsonl"
alignvec data responses "$out/queries.jsonl" "${writer[@]}" -o "$out/records.jsonl"
cd "$out"
alignvec data clean records.jsonl -o clean.jsonl --json > report.json
wc -l ./*.jsonl
