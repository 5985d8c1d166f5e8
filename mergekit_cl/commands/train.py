"""`clmerge train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mergekit_cl.commands.gate import EXIT_CODES
from mergekit_cl.commands.options import everywhere
from mergekit_cl.commands.streams import Streams

if TYPE_CHECKING:
    from mergekit_cl.tuning.schema import Config

PLACE = click.Path(path_type=Path)


@click.command("train")
@click.argument("config", required=False, type=PLACE, metavar="[CONFIG]")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Change one key.")
@click.option(
    "--resume", type=PLACE, metavar="RUN", help="Finish an interrupted run, from where it was."
)
@click.option(
    "--continue",
    "earlier",
    type=PLACE,
    metavar="RUN",
    help="Add tasks after a finished run: its model, Fisher, buffer and average go on.",
)
@click.option("--dry-run", is_flag=True, help="Print the plan; write nothing.")
@click.option("-o", "--output", type=PLACE, metavar="RUN", help="The run directory; default run.")
@click.option("--force", is_flag=True, help="Replace a run that clmerge made.")
@everywhere
@click.pass_obj
def command(
    streams: Streams,
    /,
    config: Path | None,
    sets: tuple[str, ...],
    resume: Path | None,
    earlier: Path | None,
    dry_run: bool,
    output: Path | None,
    force: bool,
) -> int:
    """Fine-tune on one task after another without forgetting.

    \b
    clmerge train config.toml --dry-run
    clmerge train config.toml --set ewc.lambda=auto -o run-1
    clmerge train --resume run-1
    clmerge train next.toml --continue run-1 -o run-2

    CONFIG is TOML or YAML: a model, tasks, and what holds forgetting back (EWC, replay, averaged
    weights, a gate). docs/train.md lists its keys.

    --resume and --continue are different words for different things. --resume finishes a run that
    was interrupted: the same tasks, the same folder, and in the end the same bytes as if nothing
    had happened; CONFIG may be left out. --continue begins a new run, in a folder of its own, with
    new tasks after those of a finished run.

    Exit codes: 0 done, 10 the gate rejected an update, 11 it could not decide, 12 the rows drifted
    and drift.stop ended the run, 130 interrupted (after both, --resume goes on).
    """
    _check(config, resume, earlier, output, force=force)
    from mergekit_cl.report.train import print_run, run_document
    from mergekit_cl.tuning.run import train

    read = _config(config, sets, resume, output)
    if dry_run:
        return _plan(streams, read, earlier)
    with streams.progress() as start:
        outcome = train(
            read,
            resume=resume,
            continue_from=earlier,
            force=force,
            progress=start,
            tell=streams.say,
        )
    streams.document(run_document(outcome))
    if not streams.quiet:
        print_run(outcome)
    return 0 if outcome.decision is None else EXIT_CODES[outcome.decision]


def _check(
    config: Path | None,
    resume: Path | None,
    earlier: Path | None,
    output: Path | None,
    *,
    force: bool,
) -> None:
    if resume is None:
        if config is None:
            raise click.UsageError("missing argument 'CONFIG'.")
        return
    if earlier is not None:
        raise click.UsageError(
            "--resume finishes a run and --continue adds tasks after one: give one of them"
        )
    if output is not None or force:
        given = "--force" if force else "-o"
        raise click.UsageError(f"--resume goes on in the run's own folder, so {given} has no place")


def _config(
    config: Path | None, sets: tuple[str, ...], resume: Path | None, output: Path | None
) -> Config:
    from mergekit_cl.tuning.reading import read_config

    if config is None:
        from mergekit_cl.tuning.resuming import check_resumed
        from mergekit_cl.tuning.rundir import RunFolder

        assert resume is not None
        check_resumed(RunFolder(resume))
        config = resume / "config.yaml"
    return read_config(config, sets, output if resume is None else resume)


def _plan(streams: Streams, config: Config, earlier: Path | None) -> int:
    if streams.silent:  # the first process alone looks
        return 0
    from mergekit_cl.report.train_plan import print_plan
    from mergekit_cl.tuning.plan import plan_training

    plan = plan_training(config, streams.say, earlier)
    streams.document(plan)
    if not streams.json:
        print_plan(plan)
    return 0
