"""Preference training, from pairs to an aligned model: loading, checkpoints, the record."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from trl import DPOConfig

from alignvec.align.aim import aim, texts_by_knob
from alignvec.align.bank import Bank, rank_of
from alignvec.align.lora import gain, linear_layers, lora_config
from alignvec.align.objectives import OBJECTIVES
from alignvec.align.own_answers import OwnAnswers
from alignvec.align.pairs import fitting, pairs_dataset, token_pairs
from alignvec.align.processes import from_main, share_of, shared_work, whole_state
from alignvec.align.settings import TRL_LOSSES, AlignSettings
from alignvec.align.trainer import Clock, ProgressOnBar, SharedPromptTrainer, TurnedPairs
from alignvec.base.branching import can_branch
from alignvec.base.checkpoint import RECORD
from alignvec.base.dtypes import default_dtype, find_device
from alignvec.base.live import open_weights
from alignvec.base.load import Base, load_base
from alignvec.base.seen import SEEN, seen_prompts
from alignvec.base.source import find_base
from alignvec.base.state import model_state
from alignvec.data.pairs import PreferencePair
from alignvec.errors import AlignvecError, NoNumbersError, one_line
from alignvec.files import atomic_folder, check_free, read_json, write_json
from alignvec.progress import progress
from alignvec.vector.adapter import write_adapter
from alignvec.vector.alignment_vector import AlignmentVector

logger = logging.getLogger(__name__)


def align(
    base: str,
    pairs: Sequence[PreferencePair],
    out: Path,
    settings: AlignSettings | None = None,
    *,
    knobs: Sequence[str] = (),
    beside: Mapping[str, AlignmentVector] | None = None,
    provenance: dict[str, Any] | None = None,
    overwrite: bool = False,
    device: str | None = None,
) -> Path:
    """Train `base` to prefer and write the aligned model to `out`.

    With `lora` the result is a PEFT adapter, with `full` a whole checkpoint. Beside it lies
    `training.json` (data hash, settings, versions, loss and margin of every step). Several knobs
    give an adapter each, in a folder of its name. Checkpoints go to a hidden folder beside it; a
    killed run, started again with the same base, data and settings, goes on from the last one.

    Called in each of several processes (`accelerate launch`) it trains one model, with the steps of
    one process; the main process writes, and all return when that is done.

    Args:
        pairs: plain ones, those of one query next to each other, as `preference_pairs` gives them,
            train at lambda = 1; those of `pairs_along` train along the knobs.
        knobs: the names of those that are trained, in the order of the pairs' strengths.
        beside: finished vectors, whose strengths come after those of `knobs`; they stay.
        provenance: goes into the training record as it is (levels, domain, data source).

    Returns:
        `out`.

    Raises:
        AlignvecError: no pairs, `out` is taken or another run's, or the base cannot be loaded.
        NoNumbersError: the loss diverged.
    """
    settings, beside = settings or AlignSettings(), dict(beside or {})
    if not pairs:
        raise AlignvecError("no preference pairs to train on")
    along = any(pair.strengths for pair in pairs)
    if along and settings.method == "full":
        raise AlignvecError("full weights are trained at one end only; --method lora for a line")
    device = find_device(device)
    group = PartialState(cpu=device == "cpu")
    check_free(out, overwrite)
    with shared_work(out, group) as work:
        _align(
            work, group, base, pairs, out, settings, knobs, beside, provenance, overwrite, device
        )
    return out


def _align(
    work: Path,
    group: PartialState,
    base: str,
    pairs: Sequence[PreferencePair],
    out: Path,
    settings: AlignSettings,
    knobs: Sequence[str],
    beside: Mapping[str, AlignmentVector],
    provenance: dict[str, Any] | None,
    overwrite: bool,
    device: str,
) -> None:
    """See `align`; `work` is this run's alone, and that of the processes in its `group`."""
    along = any(pair.strengths for pair in pairs)
    # TRL's own use of old names, and PEFT looking up a base that may be only a name here.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    warnings.filterwarnings("ignore", message="Could not find a config file")
    warnings.filterwarnings("ignore", message="Unable to fetch remote file")
    clock = Clock(time.monotonic())
    dtype = settings.dtype or (
        str(default_dtype(device)).removeprefix("torch.")
        if settings.method == "lora"
        else "float32"
    )
    with group.main_process_first():  # a GGUF file is converted once
        find_base(base)
    loaded = load_base(base, dtype, device)
    # The largest: everyday questions that are held have a row each.
    rows = itertools.groupby(pairs, lambda one: (one.prompt, one.strengths))
    row = max(sum(1 for _ in group) for _, group in rows)
    linear = linear_layers(loaded.model)
    settings = settings.resolved(along, len(pairs), gain(linear), row, len(knobs))
    settings = settings.within(loaded.model.config)
    batch = share_of(settings.batch_size or 1, group)
    on_disk = open_weights(loaded.folder)
    beside = {knob: vector.fitted(on_disk, loaded.name) for knob, vector in beside.items()}
    record = _record(loaded.name, pairs, settings, dtype) | (provenance or {})
    record |= {"base_fingerprint": on_disk.fingerprint, "base_detail": on_disk.detail}
    record |= {"knobs": list(knobs), "beside": {k: v.fingerprint() for k, v in beside.items()}}
    tokens, told = fitting(token_pairs(pairs, loaded.tokenizer), settings.max_length)
    record["length"] = told
    base_state = model_state(loaded.model, loaded.tokenizer)
    run = {**record, "base_state": base_state, "processes": group.num_processes}
    resume_from = from_main(group, lambda: _last_checkpoint(work, run))
    multiple = settings.batch_size or 1 if group.num_processes > 1 else 1
    with group.main_process_first():
        dataset = pairs_dataset(tokens, settings.seed, work, multiple)
    can_branch(loaded.model)  # tried while the weights are whole
    ranks = [settings.rank or 0] * max(1, len(knobs)) + [*map(rank_of, beside.values())]
    trainer = SharedPromptTrainer(
        objective=settings.loss if settings.loss in OBJECTIVES else None,
        margin=settings.margin,
        likelihood=settings.likelihood or 0.0,
        hold=settings.hold,
        ratio=settings.ratio or 1.0,
        model=loaded.model,
        args=_dpo_config(settings, batch, along, work, device),
        train_dataset=dataset,
        data_collator=TurnedPairs(loaded.tokenizer.pad_token_id, settings.max_length),
        processing_class=loaded.tokenizer,
        peft_config=lora_config(loaded.model, linear, settings, sum(ranks))
        if settings.method == "lora"
        else None,
    )
    if beside and trainer.is_fsdp_enabled:  # which takes the place of what `keep` hooks into
        raise AlignvecError("knobs are not trained beside others where weights are spread (FSDP)")
    if along:
        trainer.bank = Bank(trainer.model, [*knobs, *beside], ranks)
        for knob, vector in beside.items():
            trainer.bank.keep(knob, vector)
        if len(knobs) > 1 and resume_from:
            trainer.bank.keep_directions()
        elif len(knobs) > 1:
            aim(trainer.bank, texts_by_knob(tokens), settings.max_length)
        # Weights that are spread (FSDP) write no answers.
        if settings.loss in OBJECTIVES and settings.own_answers < 1 and not trainer.is_fsdp_enabled:
            steps = math.ceil(len(tokens) / (batch * group.num_processes))
            own = OwnAnswers(
                trainer.model, loaded.tokenizer, trainer.bank, trainer.train_dataset, work,
                round(settings.own_answers * steps), settings.max_length,
            )  # fmt: skip
            trainer.add_callback(own)
            trainer.data_collator.own = own
    trainer.add_callback(clock)
    with progress("aligning", "step") as bar:
        trainer.add_callback(ProgressOnBar(bar))
        _train(trainer, resume_from, work)
    curve = _curve(trainer.state.log_history)
    record |= {"seconds": round(clock.seconds, 1), "curve": curve}
    state = whole_state(trainer)
    if group.is_main_process:
        with atomic_folder(out, overwrite) as partial:
            of = knobs if along and len(ranks) > 1 else ()
            _write(trainer, loaded, of, partial, record, state)
        logger.info("aligned model in %s (%s s)", out, record["seconds"])


def _write(
    trainer: SharedPromptTrainer,
    loaded: Base,
    knobs: Sequence[str],
    folder: Path,
    record: dict[str, Any],
    state: dict[str, torch.Tensor] | None,
) -> None:
    """The aligned model, or of several `knobs` an adapter each, with the training record."""
    for knob in knobs:
        (folder / knob).mkdir()
        write_adapter(folder / knob, loaded.name, trainer.bank.factors(knob, state), torch.float32)
        write_json(folder / knob / RECORD, record | {"domain": knob})
    if not knobs:
        if record["settings"]["method"] == "lora":
            trainer.model.peft_config["default"].base_model_name_or_path = loaded.name
        trainer.model.save_pretrained(folder, state_dict=state)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model-card template
    loaded.tokenizer.save_pretrained(folder)
    write_json(folder / RECORD, record)


def _record(
    base: str, pairs: Sequence[PreferencePair], settings: AlignSettings, dtype: str
) -> dict[str, Any]:
    """What a result depends on; two runs with the same record are the same run."""
    return {
        "base": base,
        "pairs": len(pairs),
        "data_sha256": _hash_pairs(pairs),
        SEEN: seen_prompts(pair.prompt for pair in pairs),
        "settings": {**asdict(settings), "dtype": dtype},
        "versions": _versions(),
    }


def _curve(log: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """Loss, margin and accuracy of every step.

    Raises:
        NoNumbersError: one of them is none.
    """
    curve = [
        {
            "step": entry["step"],
            "loss": entry["loss"],
            "margin": entry.get("rewards/margins", 0.0),
            "accuracy": entry.get("rewards/accuracies", 0.0),
            **{name: entry[name] for name in ("nll", "moved") if name in entry},
        }
        for entry in log
        if "loss" in entry
    ]
    finite = [math.isfinite(entry["loss"] + entry["margin"]) for entry in curve]
    if finite and not finite[0]:  # nothing had been changed by then
        raise NoNumbersError(
            "the loss is no number from the first step on: the base computes none; try another "
            "--dtype, or look for what is no number in its weights"
        )
    if not all(finite):
        raise NoNumbersError("training diverged (loss is not a number); lower the learning rate")
    return curve


def _train(trainer: SharedPromptTrainer, resume_from: Path | None, work: Path) -> None:
    if resume_from is None:
        trainer.train()
        return
    logger.info("resuming from %s", resume_from.name)
    try:
        trainer.train(resume_from_checkpoint=str(resume_from))
    except (ValueError, RuntimeError) as error:
        raise AlignvecError(
            f"{resume_from} cannot be gone on from ({one_line(error)}); remove {work} to start anew"
        ) from error


def _dpo_config(
    settings: AlignSettings, batch: int, along: bool, work: Path, device: str
) -> DPOConfig:
    own = settings.loss in OBJECTIVES
    return DPOConfig(
        output_dir=str(work),
        loss_type=["sigmoid" if own else TRL_LOSSES[str(settings.loss)]],
        beta=settings.beta,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        # No warm-up at one end: an adapter starts at zero, and of two dozen steps none is to spare.
        warmup_steps=5 if along else 0,
        num_train_epochs=1 if along else settings.epochs,  # its pairs are those of all passes
        per_device_train_batch_size=batch,
        precompute_ref_batch_size=batch,
        max_length=settings.max_length,
        seed=settings.seed,
        precompute_ref_log_probs=not own,
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
        # Of several processes: each step uses every weight, in as many passes as a process likes.
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
    )


def _last_checkpoint(work: Path, run: dict[str, Any]) -> Path | None:
    """The last whole checkpoint of the same run; those of another one are dropped."""
    note = work / "run.json"
    if note.exists() and read_json(note) != json.loads(json.dumps(run)):
        logger.info("what is left of another run of the same name is dropped; starting anew")
        for left in work.iterdir():
            if left.is_dir():
                shutil.rmtree(left)
            elif left.match("own-*.json"):
                left.unlink()
    write_json(note, run)
    # The trainer writes trainer_state.json last, so without it the checkpoint is half-written.
    whole = [path for path in work.glob("checkpoint-*") if (path / "trainer_state.json").exists()]
    return max(whole, key=lambda path: int(path.name.partition("-")[2]), default=None)


def _hash_pairs(pairs: Sequence[PreferencePair]) -> str:
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(json.dumps(asdict(pair), sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    names = ("alignvec", "torch", "transformers", "trl", "peft", "datasets", "accelerate")
    return {name: version(name) for name in names}
