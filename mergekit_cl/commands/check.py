"""`clmerge check`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergekit_cl.commands.compare_options import compare_options, make_request
from mergekit_cl.commands.merge_run import LOSSY
from mergekit_cl.commands.options import everywhere
from mergekit_cl.commands.report_files import (
    FILE,
    annotate,
    check_page,
    report_options,
    write_file,
    write_page,
)
from mergekit_cl.commands.streams import Streams

if TYPE_CHECKING:
    from mergekit_cl.comparing.report import Report


@click.command("check")
@click.argument("models", nargs=-1, metavar="MERGED PARENT...")
@click.option("--fisher", multiple=True, metavar="PATH", help="Sidecars, one per parent, in order.")
@click.option("--policy", type=FILE, metavar="FILE", help="What counts as lossy.")
@click.option("--write-policy", type=FILE, metavar="FILE", help="Write the default policy, end.")
@click.option("--force", is_flag=True, help="Let --write-policy replace a file.")
@click.option(
    "--baseline", type=FILE, metavar="FILE", help="divergence.json of a release: fail if worse."
)
@report_options
@compare_options
@everywhere
@click.pass_obj
def command(
    streams: Streams,
    /,
    models: tuple[str, ...],
    fisher: tuple[str, ...],
    policy: Path | None,
    write_policy: Path | None,
    force: bool,
    baseline: Path | None,
    junit: Path | None,
    markdown: Path | None,
    annotations: bool | None,
    **values: Any,
) -> int:
    """Hold a merge to a policy of how far it may be from its parents.

    \b
    clmerge check merged A B
    clmerge check merged A B --policy policy.toml --junit check.xml
    clmerge check --write-policy policy.toml

    Exit codes: 0 ok, 10 lossy, 1 it could not be checked.
    """
    if write_policy is not None:
        return _write_policy(streams, models, write_policy, force=force)
    if force:
        raise click.UsageError("--force belongs to --write-policy")
    if len(models) < 2:
        raise click.UsageError("a check needs a merged model and at least one parent")
    from mergekit_cl.comparing.baseline import read_baseline
    from mergekit_cl.comparing.report import document
    from mergekit_cl.comparing.run import compare
    from mergekit_cl.decide.policy import DEFAULT
    from mergekit_cl.policyfile import read_policy
    from mergekit_cl.report.annotations import workflow_commands
    from mergekit_cl.report.comparison import cost, print_comparison

    check_page(values["html"])
    request = make_request(
        models[0],
        models[1:],
        fisher,
        values,
        policy=DEFAULT if policy is None else read_policy(policy),
        baseline=None if baseline is None else read_baseline(baseline),
    )
    with streams.progress() as start:
        found = compare(request, start)
    _write_reports(found, junit, markdown, values["top"])
    write_page(values["html"], found, judged=True)
    streams.document(document(found))
    if not streams.json:
        print_comparison(found, top=values["top"], verdict=True)
    annotate(annotations, lambda: workflow_commands(found))
    streams.say(cost(found))
    return LOSSY if found.divergence.verdict.lossy else 0


def _write_policy(streams: Streams, models: Sequence[str], path: Path, *, force: bool) -> int:
    if models:
        raise click.UsageError("--write-policy stands alone: it checks no model")
    from mergekit_cl.policyfile import write_policy

    write_policy(path, force=force)
    streams.document({"command": "check", "policy": str(path)})
    streams.say(f"wrote {path}; clmerge check MERGED PARENT... --policy {path}")
    return 0


def _write_reports(found: Report, junit: Path | None, markdown: Path | None, top: int) -> None:
    from mergekit_cl.report import junit as as_junit
    from mergekit_cl.report import markdown as as_markdown

    if junit is not None:
        write_file("--junit", junit, as_junit.junit(found))
    if markdown is not None:
        write_file("--markdown", markdown, as_markdown.markdown(found, top=top))
