"""`clmerge gate`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergekit_cl.commands.options import everywhere
from mergekit_cl.commands.report_files import (
    FILE,
    annotate,
    check_places,
    report_options,
    write_file,
)
from mergekit_cl.commands.streams import Streams

if TYPE_CHECKING:
    from mergekit_cl.gating.losses import Measured
    from mergekit_cl.gating.run import Rule

EXIT_CODES = {"accept": 0, "reject": 10, "inconclusive": 11}
OF_MODELS = ("anchor", "base", "adapter", "text_field", "label_field", "samples", "write_rows")
"""Options that mean nothing where losses come from --rows."""


@click.command("gate")
@click.argument("models", nargs=-1, metavar="CANDIDATE REFERENCE")
@click.option(
    "--data", multiple=True, metavar="[NAME=]PATH", help="Held-out rows, a suite each; repeatable."
)
@click.option("--anchor", metavar="MODEL", help="A release to be held against besides.")
@click.option("--base", metavar="MODEL", help="Of models that are adapters' folders.")
@click.option(
    "--adapter",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="A PEFT adapter that the candidate is with.",
)
@click.option(
    "--margin",
    type=click.FloatRange(0, min_open=True),
    default=0.02,
    show_default=True,
    help="Nats per token that do no harm.",
)
@click.option(
    "--alpha",
    type=click.FloatRange(0, 0.5, min_open=True, max_open=True),
    default=0.05,
    show_default=True,
    help="Probability of accepting what is worse.",
)
@click.option(
    "--min-rows",
    type=click.IntRange(2),
    default=500,
    show_default=True,
    help="Of a suite; fewer decide nothing.",
)
@click.option("--ledger", type=FILE, metavar="FILE", help="Count looks at the same rows here.")
@click.option("--rows", type=FILE, metavar="FILE", help="Decide by stored losses, without models.")
@click.option("--write-rows", type=FILE, metavar="FILE", help="Store the losses of every row.")
@click.option("-o", "--output", type=FILE, metavar="FILE", help="Write the verdict as JSON.")
@click.option("--text-field", metavar="NAME", help="Of the text, where not `text`.")
@click.option("--label-field", metavar="NAME", help="Of the label, where not `label`.")
@click.option("--samples", type=click.IntRange(1), help="Rows per suite; default all.")
@click.option(
    "--max-length", type=click.IntRange(1), default=512, show_default=True, help="Tokens per row."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the draws.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N.")
@click.option("--threads", type=click.IntRange(1), help="Of torch; default its own choice.")
@report_options
@everywhere
@click.pass_obj
def command(
    streams: Streams,
    /,
    models: tuple[str, ...],
    output: Path | None,
    rows: Path | None,
    junit: Path | None,
    markdown: Path | None,
    annotations: bool | None,
    **values: Any,
) -> int:
    """Decide whether a candidate may replace a reference: is it at most a margin worse?

    \b
    clmerge gate candidate release --data held-out.jsonl
    clmerge gate week-32 week-31 --base model --anchor model --data chat=a.jsonl --data code=b.jsonl
    clmerge gate --rows losses.jsonl --margin 0.01

    Exit codes: 0 accepted, 10 rejected, 11 inconclusive, 1 it could not be decided.
    """
    started = time.perf_counter()
    _check_usage(models, rows, values)
    from mergekit_cl.gating.document import document
    from mergekit_cl.gating.rowsfile import read_rows_file
    from mergekit_cl.gating.run import Rule, decide_measured
    from mergekit_cl.report.gate import cost, print_gate
    from mergekit_cl.report.gate_reports import gate_commands, gate_junit, gate_markdown

    places = {"--write-rows": values["write_rows"], "-o": output, "--junit": junit}
    places |= {"--markdown": markdown, "--ledger": values["ledger"]}
    check_places(places)
    rule = Rule(
        values["margin"],
        values["alpha"],
        values["min_rows"],
        values["seed"],
        ledger=values["ledger"],
    )
    measured = read_rows_file(rows) if rows else _measure(streams, models, rule, values)
    outcome = decide_measured(measured, rule, started)
    found = document(outcome)
    if output is not None:
        write_file("-o", output, f"{json.dumps(found, indent=1, sort_keys=True)}\n")
    if junit is not None:
        write_file("--junit", junit, gate_junit(outcome))
    if markdown is not None:
        write_file("--markdown", markdown, gate_markdown(outcome))
    streams.document(found)
    if not streams.json:
        print_gate(outcome)
    annotate(annotations, lambda: gate_commands(outcome))
    streams.say(cost(outcome))
    return EXIT_CODES[outcome.verdict.decision]


def _check_usage(models: tuple[str, ...], rows: Path | None, values: dict[str, Any]) -> None:
    if rows is not None:
        given = ["CANDIDATE"] if models else []
        given += ["--data"] if values["data"] else []
        given += [f"--{name.replace('_', '-')}" for name in OF_MODELS if values[name] is not None]
        if given:
            raise click.UsageError(f"--rows holds losses already: {given[0]} means nothing with it")
        return
    if len(models) != 2:
        raise click.UsageError("a gate needs a candidate and a reference, or --rows")
    if not values["data"]:
        raise click.UsageError("missing option '--data': held-out rows to measure both on")


def _measure(
    streams: Streams, models: tuple[str, ...], rule: Rule, values: dict[str, Any]
) -> Measured:
    from mergekit_cl.estimating.place import adapter_folder
    from mergekit_cl.gating.models import find_subject
    from mergekit_cl.gating.rowsfile import write_rows
    from mergekit_cl.gating.run import Measurement, measure_all

    places = {"candidate": models[0], "reference": models[1], "anchor": values["anchor"]}
    subjects = tuple(
        find_subject(
            role,
            place,
            base=values["base"],
            adapter=adapter_folder(values["adapter"]) if role == "candidate" else None,
        )
        for role, place in places.items()
        if place is not None
    )
    wanted = Measurement(
        subjects,
        values["data"],
        values["text_field"],
        values["label_field"],
        values["samples"],
        values["max_length"],
        values["device"],
        values["threads"],
    )
    with streams.progress() as start:
        measured = measure_all(wanted, rule, start)
    if values["write_rows"] is not None:
        write_rows(values["write_rows"], measured)
    return measured
