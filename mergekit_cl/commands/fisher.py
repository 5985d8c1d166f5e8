"""`clmerge fisher`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mergekit_cl.commands.options import everywhere, output_options, row_options
from mergekit_cl.commands.parameters import BatchSize, DType
from mergekit_cl.commands.streams import Streams


@click.command("fisher")
@click.argument("model", metavar="MODEL")
@row_options("Rows: a file, directory or quoted glob.")
@click.option(
    "--adapter", type=click.Path(path_type=Path), help="A PEFT adapter to apply to the weights."
)
@click.option("--base", metavar="PATH", help="Calibrate: measure the divergence from this model.")
@click.option(
    "--estimator",
    type=click.Choice(["mc", "exact", "empirical", "adam"]),
    help="Default: exact for classifiers of up to 64 classes, else mc.",
)
@click.option(
    "--optimizer",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="For adam: optimizer.pt, or a folder of torch.distributed.checkpoint.",
)
@click.option("--draws", type=click.IntRange(1), default=1, show_default=True, help="Labels, mc.")
@click.option(
    "--target-se",
    type=click.FloatRange(0, min_open=True),
    metavar="X",
    help="Stop when the trace is known to this relative standard error.",
)
@click.option("--batch-size", type=BatchSize(), default="auto", show_default=True, help="Rows.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of rows and drawn labels.")
@click.option(
    "--store-dtype",
    type=click.Choice(["bfloat16", "float32"]),
    default="bfloat16",
    show_default=True,
    help="Of the sidecar.",
)
@click.option(
    "--compute-dtype", type=DType(), default="float32", show_default=True, help="Of the model."
)
@click.option("--stream-layers", is_flag=True, help="Hold one layer at a time in memory.")
@output_options(None)
@everywhere
@click.pass_obj
def command(
    streams: Streams,
    /,
    model: str,
    data: tuple[str, ...],
    output: Path | None,
    store_dtype: str,
    dry_run: bool,
    adapter: Path | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    **values: Any,
) -> int:
    """Compute a Fisher sidecar for a model.

    \b
    clmerge fisher MODEL --data rows.jsonl
    clmerge fisher MODEL --data 'texts/*.txt' --samples 512 --max-length 256
    clmerge fisher MODEL --estimator adam --optimizer checkpoint-500/optimizer.pt
    """
    from mergekit_cl.estimating.adam import run_adam
    from mergekit_cl.estimating.place import adapter_folder
    from mergekit_cl.estimating.planning import plan_fisher
    from mergekit_cl.estimating.request import FisherRequest
    from mergekit_cl.estimating.run import run_fisher
    from mergekit_cl.plan import Selection
    from mergekit_cl.report.fisher import fisher_document, print_fisher
    from mergekit_cl.report.fisher_plan import print_plan

    if values["estimator"] == "adam":
        if values["optimizer"] is None:
            raise click.UsageError("missing option '--optimizer', which --estimator adam reads.")
        if values["stream_layers"]:
            raise click.UsageError("--estimator adam runs no layers, so --stream-layers has none.")
    elif values["optimizer"] is not None:
        raise click.UsageError("--optimizer is read by --estimator adam alone.")
    elif not data:
        raise click.UsageError("missing option '--data'.")
    request = FisherRequest(
        model=model,
        data=data,
        target=output,
        store_dtype={"bfloat16": "BF16", "float32": "F32"}[store_dtype],
        selection=Selection(include, exclude),
        adapter=adapter_folder(adapter),
        **values,
    )
    if dry_run:
        if streams.silent:  # the first process alone looks
            return 0
        plan = plan_fisher(request, streams.say)
        streams.document(plan)
        if not streams.json:
            print_plan(plan)
        return 0
    with streams.progress() as start:
        if request.estimator != "adam":
            outcome = run_fisher(request, start, streams.say)
        elif not streams.silent:
            outcome = run_adam(request)
    if streams.silent:
        return 0
    for note in outcome.notes:
        streams.say(f"note: {note}")
    streams.document(fisher_document(outcome))
    if not streams.quiet:
        print_fisher(outcome)
    return 0
