"""`alignvec route`: a router from texts to domains."""

from __future__ import annotations

from typing import Annotated

import typer

from alignvec.cli.inputs import records_of
from alignvec.cli.options import AsJson, BaseArgument, Data, Device, Dtype, Out, Overwrite
from alignvec.cli.output import print_json

app = typer.Typer()


@app.command(
    epilog="Example: alignvec route embedded --data builtin -o router\n\n"
    "Example: alignvec route embedded --reads text -o router     (acts in front of any engine)"
)
def route(
    base: BaseArgument,
    out: Out,
    data: Data = "builtin",
    sure: Annotated[
        float, typer.Option(min=0, max=1, help="Below this probability a query has no domain.")
    ] = 0.5,
    reads: Annotated[
        str,
        typer.Option(help="hidden (the base's hidden states) or text (its words; no model)."),
    ] = "hidden",
    overwrite: Overwrite = False,
    dtype: Dtype = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """A classifier from a query to its domain, so that a knob acts on its own domain alone.

    Linear, on the base's own hidden states or on the words alone; trained on all but the data's
    test part, which gives the accuracy that is reported.
    """
    from alignvec.base.identity import base_id
    from alignvec.base.load import load_base
    from alignvec.base.seen import SEEN, count_seen, queries_told, seen_prompts
    from alignvec.files import check_free
    from alignvec.route.router import Router

    check_free(out, overwrite)
    records = records_of(data, [], None, "all", "all")
    loaded = load_base(base, dtype, device) if reads == "hidden" else None
    model, tokenizer = (loaded.model, loaded.tokenizer) if loaded else (None, None)
    train, test = (
        [record for record in records if (record.split == "test") == held_out]
        for held_out in (False, True)
    )
    queries, domains = [r.query for r in train], [r.domain for r in train]
    known = base_id(base) if loaded else None
    router = Router.fit(model, tokenizer, queries, domains, sure, reads, known)
    found = router.domain(model, tokenizer, [record.query for record in test])
    right = sum(record.domain == domain for record, domain in zip(test, found, strict=True))
    router.save(out, overwrite)
    seen = count_seen([{SEEN: seen_prompts(queries)}], [record.query for record in test])
    result = {"domains": router.domains, "train": len(train), "test": len(test), "right": right,
              "unsure": found.count(None), "seen_in_training": seen}  # fmt: skip
    if as_json:
        print_json(result)
        return
    typer.echo(
        f"router: {out} ({', '.join(router.domains)}); {right} of "
        f"{queries_told(len(test), seen)} right, {found.count(None)} left without a domain"
    )
