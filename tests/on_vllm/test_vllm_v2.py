"""The second model runner and the kernels of GPUs, here: by Triton's interpreter, on a CPU.

vLLM takes either only where there is Triton with a driver; the interpreter needs none. It is slow
and computes the same, so that what runs on a GPU is tried, if not how fast.
"""

import json
import subprocess
import sys

import pytest

pytest.importorskip("vllm", reason="vLLM is in an environment of its own: make vllm-test")

import engines

SETTINGS = engines.settings(4)
PROMPTS = [f"a prefix that all share, and question {n % 2}" for n in range(4)]

SCRIPT = """
import json, os, sys

os.environ |= {"TRITON_INTERPRET": "1", "VLLM_USE_V2_MODEL_RUNNER": "1"}
import triton.backends

class Driver:
    is_active = staticmethod(lambda: True)

class Backend:
    driver = Driver

triton.backends.backends.setdefault("cpu", Backend)
paths, settings, prompts, kernels = map(json.loads, sys.argv[1:])
dtype, tokens_each = "float32", 8
if kernels:
    from vllm.platforms.cpu import CpuPlatform
    from alignvec.serve.vllm import gate_cpu

    name = "vllm.lora.punica_wrapper.punica_gpu.PunicaWrapperGPU"
    CpuPlatform.get_punica_wrapper = classmethod(lambda cls: name)
    gate_cpu.is_alone = lambda config: False
    dtype, tokens_each = "float16", 3  # these kernels take no other, and are slow so

from pathlib import Path

import engines

made = {name: Path(path) for name, path in paths.items()}
with engines.environment(made):
    llm = engines.engine(made, dtype=dtype, num_gpu_blocks_override=9, max_num_batched_tokens=48)
runner = llm.llm_engine.model_executor.driver_worker.worker.model_runner
tokens = []
for _ in range(1 if kernels else 2):  # the second time from the prefix cache
    answers = engines.written(llm, prompts, [one or None for one in settings], tokens_each)
    tokens.append([list(answer.outputs[0].token_ids) for answer in answers])
(wrapper,) = set(runner.lora_manager._adapter_manager.punica_wrapper_mapping.values())
print("\\n" + json.dumps([type(runner).__mro__[1].__module__, type(wrapper).__name__, tokens]))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return engines.make(tmp_path_factory.mktemp("vllm"))


@pytest.mark.parametrize(
    ("kernels", "products", "close"),
    [(False, "GatedAlone", engines.CLOSE), (True, "GatedPunicaWrapperGPU", 0.05)],
    ids=["second runner", "kernels of GPUs"],
)
def test_settings_are_folded_checkpoints(made, tmp_path, kernels, products, close):
    script = tmp_path / "interpreted.py"
    script.write_text(SCRIPT)
    paths = {name: str(path) for name, path in made.items()}
    done = subprocess.run(
        [sys.executable, script, *map(json.dumps, (paths, SETTINGS, PROMPTS, kernels))],
        env=engines.for_processes(), capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    runner, wrapper, both = json.loads(done.stdout.splitlines()[-1])
    assert runner == "vllm.v1.worker.gpu.model_runner"
    assert wrapper == products
    folded = engines.Folded(made)
    for answers in both:
        for prompt, setting, tokens in zip(PROMPTS, SETTINGS, answers, strict=True):
            folded.check(prompt, setting, tokens, close)
