#!/usr/bin/env bash
# The wheel in a bare environment, used from an empty folder: a file that it lacks, or a package
# that a capability needs and does not declare, shows here and nowhere else.
set -euo pipefail
repo=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HF_HUB_OFFLINE=1 ALIGNVEC_CACHE="$work/cache"

"${PYTHON:-python3}" -m venv "$work/venv"
PATH="$work/venv/bin:$PATH"
# Not compiled: most of what comes along is never imported.
install() { pip install -q --no-compile -c "$repo/constraints.txt" "$@"; }
pip wheel -q --no-deps -w "$work" "$repo"
wheel=$(echo "$work"/alignvec-*.whl)
install torch
install "$wheel"
mkdir "$work/empty"
cd "$work/empty"

echo "core: the command line, the data, the public names"
alignvec --help >/dev/null
python - <<'PYTHON'
from importlib.resources import files

import alignvec
import alignvec.evaluate
from alignvec.data import LEVELS, read_records
from alignvec.data.spectrum import read_spectrum

assert "site-packages" in alignvec.__file__, alignvec.__file__
assert alignvec.AlignmentVector and alignvec.KnobModel
records = list(read_records("builtin", LEVELS))
assert len(records) == 660, len(records)
for name in ("medical", "financial", "legal", "tone", "detail"):
    read_spectrum(name)
for part in ("builtin/neutral.txt", "builtin/safety.jsonl", "builtin/DATASHEET.md",
             "prompts/people.yaml", "prompts/persona.txt", "prompts/query.txt",
             "prompts/response.txt"):
    assert files("alignvec.data").joinpath(part).is_file(), part
PYTHON

python - <<'PYTHON'
"""A tiny random model and four preferences."""
import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

words = ["<pad>", "<s>", "</s>", *map(chr, range(32, 127))]
LlamaForCausalLM(
    LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )
).save_pretrained("tiny")
tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<pad>"))
tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
).save_pretrained("tiny")
pairs = [{"prompt": f"{i}?", "chosen": f"{i} s", "rejected": "ask"} for i in range(4)]
Path("pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
PYTHON

echo "core: training says which extra it wants"
if alignvec align tiny --data pairs.jsonl -o aligned 2>refused; then exit 1; fi
grep -F 'install alignvec[' refused

echo "[align]: one step of training, its vector, two answers"
install "$wheel[align]"
alignvec -q align tiny --data pairs.jsonl -o aligned
alignvec -q extract tiny aligned -o vector
alignvec -q generate tiny --vector knob=vector --set knob=0 --set knob=1 "1?" >/dev/null
test -f vector/alignment_vector.json
pip check
echo "1 passed, 0 failed"
