"""Preference training: from a base and preference pairs to an aligned model, with DPO through TRL.

TRL reads every pair as two rows, prompt included. Levels make that wasteful: the pairs of one
query share their prompt, and neighbours share a response (expert>generic, generic>avoidance).
`SharingTrainer` hands TRL the same log-probabilities from one row a query, and leaves the loss,
the reference, the optimiser and the checkpoints to TRL.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import random
import shutil
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignvec.data import PreferencePair
from alignvec.errors import AlignvecError, check_known
from alignvec.files import check_free, read_json, whole_folder, write_json
from alignvec.likelihood import Row, can_branch, logprobs
from alignvec.models import default_dtype, load_base, one_line, parse_dtype, plain_prompt

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from trl import DPOConfig

logger = logging.getLogger(__name__)

LOSSES = {  # our word: TRL's
    "dpo": "sigmoid",
    "ipo": "ipo",
    "hinge": "hinge",
    "nca": "nca_pair",
    "bco": "bco_pair",
    "sppo": "sppo_hard",
    "aot": "aot",
    "apo_zero": "apo_zero",
    "apo_down": "apo_down",
    "discopop": "discopop",
}
METHODS = ("lora", "full")
RECORD = "training.json"


@dataclass(frozen=True)
class AlignSettings:
    """How to train.

    Attributes:
        loss: a key of `LOSSES`.
        method: `lora` (an adapter on every linear layer) or `full` (all weights).
        learning_rate: at the first step, falling to zero on a cosine. No warm-up: an
            adapter starts at zero, and of two dozen steps none is to spare.
            None: see `peak_learning_rate`.
        beta: strength of the pull towards the base (DPO's beta).
        batch_size: pairs a step.
        rank: of the adapter; its alpha is twice that.
        layers: the share of the blocks that the adapter changes, counted from the top.
        two_sided: every second step turns the adapter to strength -1 and the pairs around, so that
            the knob is trained on both its ends: theta + tau prefers the chosen responses and
            theta - tau the rejected ones. Only for lora. False is plain DPO, as in the paper.
        dtype: of the base's weights. None takes what the device computes fastest in for lora, and
            float32 for full, whose small steps bfloat16 weights would swallow.
        save_every: steps between checkpoints.
    """

    loss: str = "dpo"
    method: str = "lora"
    epochs: float = 1.0
    learning_rate: float | None = None
    beta: float = 0.1
    batch_size: int = 8
    rank: int = 16
    layers: float = 0.75
    two_sided: bool = True
    max_length: int = 1024
    seed: int = 0
    dtype: str | None = None
    save_every: int = 10

    def __post_init__(self) -> None:
        check_known("loss", self.loss, LOSSES)
        check_known("method", self.method, METHODS)
        for name in ("epochs", "beta", "batch_size", "rank", "max_length", "save_every", "layers"):
            if not 0 < getattr(self, name) < float("inf"):
                raise AlignvecError(f"{name} must be a positive number, not {getattr(self, name)}")
        if self.layers > 1:
            raise AlignvecError(f"layers is a share of the blocks, at most 1, not {self.layers}")
        rate = self.learning_rate
        if rate is not None and not 0 < rate < float("inf"):
            raise AlignvecError(f"learning rate must be a positive number, not {rate}")
        parse_dtype(self.dtype)

    def peak_learning_rate(self, pairs: int) -> float:
        """The rate asked for, or one that moves the weights about equally far for any data size.

        Adam's steps have the size of the learning rate, so its sum over the steps bounds how far
        the weights travel. Held constant (at most 1e-3 a step), lambda = 1 means about as much on
        50 queries as on 500, and `docs/explanation.md` shows where between -3 and 3 things happen.
        """
        if self.learning_rate is not None:
            return self.learning_rate
        if self.method == "full":
            return 5e-6
        steps = math.ceil(pairs / self.batch_size) * self.epochs
        return min(1e-3, 0.016 / steps)


def align(
    base: str,
    pairs: Sequence[PreferencePair],
    out: Path,
    settings: AlignSettings | None = None,
    *,
    provenance: dict[str, Any] | None = None,
    overwrite: bool = False,
    device: str | None = None,
) -> Path:
    """Train `base` to prefer and write the aligned model to `out`.

    With `lora` the result is a PEFT adapter, with `full` a whole checkpoint. Beside it lie
    `training.json` (data hash, settings, versions, loss and margin of every step) and the same as
    a figure. Checkpoints go to `OUT.checkpoints`; a killed run, started again with the same data
    and settings, goes on from the last one.

    Args:
        pairs: pairs of one query next to each other, as `preference_pairs` gives them.
        provenance: goes into the training record as it is (levels, domain, data source).

    Returns:
        `out`.

    Raises:
        AlignvecError: no pairs, `out` is taken, the base cannot be loaded, or the loss diverged.
    """
    settings = settings or AlignSettings()
    if not pairs:
        raise AlignvecError("no preference pairs to train on")
    check_free(out, overwrite)

    import torch

    # TRL's own use of old names, and PEFT looking up a base that may be only a name here.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    warnings.filterwarnings("ignore", message="Could not find a config file")
    warnings.filterwarnings("ignore", message="Unable to fetch remote file")
    started = time.time()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = settings.dtype or (
        str(default_dtype(device)).removeprefix("torch.")
        if settings.method == "lora"
        else "float32"
    )
    loaded = load_base(base, dtype, device)
    record: dict[str, Any] = {
        "base": loaded.name,
        "pairs": len(pairs),
        "data_sha256": _hash_pairs(pairs),
        "settings": {
            **asdict(settings),
            "learning_rate": settings.peak_learning_rate(len(pairs)),
            "dtype": dtype,
        },
        "versions": _versions(),
        **(provenance or {}),
    }
    work = out.with_name(f"{out.name}.checkpoints")
    resume_from = _prepare_work_folder(work, record)

    trainer = _trainer_class()(
        model=loaded.model,
        args=_dpo_config(settings, len(pairs), work, device),
        train_dataset=_dataset(pairs, loaded.tokenizer, settings.seed, work),
        processing_class=loaded.tokenizer,
        peft_config=_lora_config(loaded.model, settings) if settings.method == "lora" else None,
        two_sided=settings.two_sided and settings.method == "lora",
    )
    if resume_from:
        logger.info("resuming from %s", resume_from.name)
    try:
        trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    except (ValueError, RuntimeError) as error:
        if resume_from is None:
            raise
        raise AlignvecError(
            f"{resume_from} cannot be resumed ({one_line(error)}); remove {work} to start anew"
        ) from error
    curve = [
        {
            "step": entry["step"],
            "loss": entry["loss"],
            "margin": entry.get("rewards/margins", 0.0),
            "accuracy": entry.get("rewards/accuracies", 0.0),
        }
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    if not all(math.isfinite(entry["loss"] + entry["margin"]) for entry in curve):
        raise AlignvecError("training diverged (loss is not a number); lower the learning rate")

    record["seconds"] = round(time.time() - started, 1)
    record["curve"] = curve
    with whole_folder(out, overwrite) as partial:
        if settings.method == "lora":
            trainer.model.peft_config["default"].base_model_name_or_path = loaded.name
        trainer.model.save_pretrained(partial)
        loaded.tokenizer.save_pretrained(partial)
        (partial / "README.md").unlink(missing_ok=True)  # PEFT's empty model-card template
        write_json(partial / RECORD, record)
        from alignvec.report.figures import draw_training

        draw_training(record, partial / "training")
    shutil.rmtree(work, ignore_errors=True)
    logger.info("aligned model in %s (%s s)", out, record["seconds"])
    return out


def _dpo_config(settings: AlignSettings, pairs: int, work: Path, device: str) -> DPOConfig:
    from trl import DPOConfig

    return DPOConfig(
        output_dir=str(work),
        loss_type=[LOSSES[settings.loss]],
        beta=settings.beta,
        learning_rate=settings.peak_learning_rate(pairs),
        lr_scheduler_type="cosine",
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        precompute_ref_batch_size=settings.batch_size,
        max_length=settings.max_length,
        seed=settings.seed,
        precompute_ref_log_probs=True,
        # Recomputing activations buys memory with a third of the time; small models have memory.
        gradient_checkpointing=False,
        # Weights are already in the dtype to compute in.
        bf16=False,
        fp16=False,
        # Queries are shuffled below, the pairs of one query stay together to share their row.
        train_sampling_strategy="sequential",
        save_steps=settings.save_every,
        save_total_limit=2,
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would show a diverged loss as 0
        report_to="none",
        use_cpu=device == "cpu",
    )


def _dataset(
    pairs: Sequence[PreferencePair], tokenizer: PreTrainedTokenizerBase, seed: int, work: Path
) -> Dataset:
    """Pairs as TRL reads them, queries shuffled; on disk, so that TRL's caches survive a kill."""
    import datasets

    by_prompt: dict[str, list[PreferencePair]] = {}
    for pair in pairs:
        by_prompt.setdefault(pair.prompt, []).append(pair)
    prompts = list(by_prompt)
    random.Random(seed).shuffle(prompts)
    ordered = [pair for prompt in prompts for pair in by_prompt[prompt]]

    def said(role: str, text: str) -> Any:
        if tokenizer.chat_template is None:
            return plain_prompt(text) if role == "user" else text
        return [{"role": role, "content": text}]

    rows = [
        {
            "prompt": said("user", pair.prompt),
            "chosen": said("assistant", pair.chosen),
            "rejected": said("assistant", pair.rejected),
        }
        for pair in ordered
    ]
    if len(rows) < 5000:  # bars that flash by hide the one that matters
        datasets.disable_progress_bars()
    folder = work / "pairs"
    if not (folder / "state.json").exists():
        datasets.Dataset.from_list(rows).save_to_disk(folder)
    return datasets.load_from_disk(str(folder))


def _lora_config(model: PreTrainedModel, settings: AlignSettings) -> LoraConfig:
    """An adapter on every linear layer of the upper `settings.layers` of the blocks.

    The gradient then stops at the lowest of them: the blocks below cost no backward pass.
    """
    from peft import LoraConfig

    depth = model.config.get_text_config().num_hidden_layers
    first = min(depth - 1, round(depth * (1 - settings.layers)))
    # With full names rather than PEFT's "all-linear", which cannot be narrowed to some layers.
    linear = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if type(module).__name__ in ("Linear", "Conv1D")
        and module is not model.get_output_embeddings()
    }
    return LoraConfig(
        r=settings.rank,
        lora_alpha=2 * settings.rank,
        target_modules=sorted(linear),
        layers_to_transform=None if first == 0 else list(range(first, depth)),
        task_type="CAUSAL_LM",
    )


def _trainer_class() -> type:
    import torch
    from peft.helpers import rescale_adapter_scale
    from transformers import ProgressCallback, TrainerCallback
    from transformers.trainer_callback import PrinterCallback
    from trl import DPOTrainer
    from trl.trainer.utils import FusedCausalLMOutput

    class Progress(TrainerCallback):
        """One bar with the time left, the loss and the margin."""

        bar: Any = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            from tqdm.auto import tqdm

            self.bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                desc="aligning",
                unit="step",
                file=sys.stderr,
            )

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if self.bar is not None and logs and "loss" in logs:
                self.bar.set_postfix(
                    loss=f"{logs['loss']:.3f}",
                    margin=f"{logs.get('rewards/margins', 0):.2f}",
                    refresh=False,
                )

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.bar.update(state.global_step - self.bar.n)

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.bar.close()

    class SharingTrainer(DPOTrainer):
        """DPOTrainer that reads each query of a batch once, and can train both ends of a knob."""

        def __init__(self, two_sided: bool = False, **kwargs: Any) -> None:
            self.shares = can_branch(kwargs["model"])
            self.two_sided = two_sided
            super().__init__(**kwargs)
            self.remove_callback(ProgressCallback)
            self.remove_callback(PrinterCallback)
            self.add_callback(Progress())

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss
            if self.two_sided and self.state.global_step % 2:
                with rescale_adapter_scale(model, -1):
                    return loss(self._sharing(model), _turned_around(inputs), *args, **kwargs)
            return loss(self._sharing(model), inputs, *args, **kwargs)

        def compute_ref_log_probs(self, model: Any, inputs: Any) -> Any:
            return super().compute_ref_log_probs(self._sharing(model), inputs)

        def _sharing(self, model: Any) -> Any:
            if not self.shares:
                return model

            def forward(
                input_ids: torch.Tensor,
                attention_mask: torch.Tensor,
                labels: torch.Tensor,
                **_: Any,
            ) -> FusedCausalLMOutput:
                """Log-probabilities [2B, T - 1] of the labels of 2B rows, from one row a prompt."""
                rows, places = _rows_by_prompt(input_ids, attention_mask, labels)
                found = logprobs(model, rows)
                zeros = torch.zeros(labels[:, 1:].shape, device=labels.device)
                log_probs = torch.stack(
                    [
                        torch.nn.functional.pad(
                            found[row][response], _margins(rows[row], response, zeros.shape[1])
                        )
                        for row, response in places
                    ]
                )
                # TRL logs the other three; they would cost more than the loss does, and nobody
                # reads them here.
                return FusedCausalLMOutput(
                    log_probs=log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool()
                )

            return forward

    return SharingTrainer


def _turned_around(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The batch with chosen and rejected exchanged; TRL stacks the chosen rows on the rejected."""
    import torch

    other = {"ref_chosen_logps": "ref_rejected_logps", "ref_rejected_logps": "ref_chosen_logps"}
    return {
        name: batch[other[name]] if name in other else torch.cat(rows.chunk(2)[::-1])
        for name, rows in batch.items()
    }


def _margins(row: Row, response: int, width: int) -> tuple[int, int]:
    """How many positions of a row of `width` lie before and after those that predict a response."""
    before = len(row.prompt) - 1
    return before, width - before - len(row.responses[response])


def _rows_by_prompt(
    input_ids: Any, attention_mask: Any, labels: Any
) -> tuple[list[Row], list[tuple[int, int]]]:
    """Group a padded batch by prompt, equal responses once.

    Returns:
        The rows, and for each line of the batch its (row, response).
    """
    rows: list[Row] = []
    row_of: dict[tuple[int, ...], int] = {}
    places = []
    lengths = attention_mask.sum(dim=1).tolist()
    prompts = (attention_mask.bool() & (labels == -100)).sum(dim=1).tolist()
    for tokens, length, prompt_length in zip(input_ids.tolist(), lengths, prompts, strict=True):
        prompt, response = tuple(tokens[:prompt_length]), tokens[prompt_length:length]
        if prompt not in row_of:
            row_of[prompt] = len(rows)
            rows.append(Row(prompt, []))
        responses: list[Any] = rows[row_of[prompt]].responses  # type: ignore[assignment]
        if response not in responses:
            responses.append(response)
        places.append((row_of[prompt], responses.index(response)))
    return rows, places


def _prepare_work_folder(work: Path, record: dict[str, Any]) -> Path | None:
    """Keep the checkpoints of the same run, drop those of another; return the last whole one."""
    note = work / "run.json"
    same = note.exists() and read_json(note) == json.loads(json.dumps(record))
    if work.exists() and not same:
        logger.info("%s holds checkpoints of another run; starting anew", work.name)
        shutil.rmtree(work)
    write_json(note, record)
    # The trainer writes trainer_state.json last, so without it the checkpoint is half-written.
    whole = [path for path in work.glob("checkpoint-*") if (path / "trainer_state.json").exists()]
    return max(whole, key=lambda path: int(path.name.partition("-")[2]), default=None)


def _hash_pairs(pairs: Sequence[PreferencePair]) -> str:
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(json.dumps(asdict(pair), sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("alignvec", "torch", "transformers", "trl", "peft", "datasets", "accelerate")
    return {name: version(name) for name in names}
