"""A vector on the Hugging Face hub, with a model card."""

from __future__ import annotations

import tempfile
from pathlib import Path

from huggingface_hub import HfApi, ModelCardData

from alignvec.errors import AlignvecError, one_line
from alignvec.vector.model_delta import ModelDelta
from alignvec.vector.store import save


def push(vector: ModelDelta, repo_id: str, private: bool) -> str:
    """See `AlignmentVector.push_to_hub`."""
    api = HfApi()
    with tempfile.TemporaryDirectory() as folder:
        saved = save(vector, Path(folder) / "vector")
        (saved / "README.md").write_text(model_card(vector, repo_id), encoding="utf-8")
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=repo_id, folder_path=saved))
        except Exception as error:
            raise AlignvecError(f"cannot push to '{repo_id}': {one_line(error)}") from error


def model_card(vector: ModelDelta, repo_id: str) -> str:
    """The README of a vector on the hub, from its metadata; front matter as the hub reads it."""
    on_hub = "/" in vector.base.id
    front = ModelCardData(
        base_model=vector.base.id if on_hub else None,
        library_name="peft" if vector.kind == "low_rank" else "alignvec",
        tags=["alignvec", "alignment-vector", *(["lora"] if vector.kind == "low_rank" else [])],
    )
    training, prefer = vector.training, vector.training.get("prefer")
    facts = {
        "kind": f"{vector.kind}, {len(vector.deltas)} tensors",
        "base": f"{vector.base.id} (fingerprint `{vector.base.fingerprint}`)",
        "trained on": ", ".join(
            str(training[key]) for key in ("data", "domain", "pairs") if training.get(key)
        ),
        "preference": " > ".join(map(str, prefer)) if isinstance(prefer, list) else None,
        "formula": training.get("formula"),
    }
    table = "".join(f"| {name} | {value} |\n" for name, value in facts.items() if value)
    return f"""---
{front.to_yaml()}
---

# {vector.name}

An alignment vector: the weights of an aligned model minus those of its base. Turn it with a
strength, 0 for the base, 1 for the aligned model, negative for the opposite:

```python
from alignvec import KnobModel

model = KnobModel.from_pretrained("{vector.base.id}", vectors={{"knob": "{repo_id}"}})
model.set(knob=0.7)
```

| | |
| --- | --- |
{table}"""
