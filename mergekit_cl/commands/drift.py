"""`clmerge drift`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mergekit_cl.commands.options import everywhere
from mergekit_cl.commands.streams import Streams

if TYPE_CHECKING:
    from mergekit_cl.drifting.watch import DetectorName

DRIFT = 12
SIGNALLED = 128
DETECTORS = ("page-hinkley", "cusum", "adwin")


@click.group("drift", no_args_is_help=False)
@everywhere
def command() -> None:
    """Tell when the level of a stream of losses has changed.

    \b
    clmerge drift calibrate stable.jsonl --arl 10000
    clmerge drift watch losses.jsonl
    """


@command.command("calibrate")
@click.argument("stable", metavar="STABLE")
@click.option(
    "--arl",
    type=click.IntRange(10),
    required=True,
    metavar="N",
    help="Rows between two false alarms, on average.",
)
@click.option(
    "--detector",
    type=click.Choice(DETECTORS),
    default=DETECTORS[0],
    show_default=True,
    help="Changes from the level so far, from the stable period's, or by an adaptive window.",
)
@click.option("--column", metavar="NAME", help="What to watch of each row; default loss.")
@click.option(
    "--delta",
    type=click.FloatRange(0, min_open=True),
    metavar="D",
    help="Half the shift to find fastest, in standard deviations; default 0.5; not for adwin.",
)
@click.option(
    "-o",
    "--output",
    default="drift.json",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Where the state goes.",
)
@click.option("--force", is_flag=True, help="Replace a drift state.")
@everywhere
@click.pass_obj
def calibrate_command(
    streams: Streams,
    /,
    stable: str,
    arl: int,
    detector: DetectorName,
    column: str | None,
    delta: float | None,
    output: Path,
    force: bool,
) -> int:
    """Learn from a stable period what is no drift.

    \b
    clmerge drift calibrate stable.jsonl --arl 10000
    clmerge drift calibrate stable.csv --column eval_loss --arl 500 --detector cusum -o eval.json

    STABLE: a known-stable part of the stream: JSON lines, csv or plain numbers; - is stdin.
    """
    from mergekit_cl.drifting.prepare import Request, prepare
    from mergekit_cl.report.drift import calibration_document, calibration_lines

    request = Request(stable, arl, detector, column, delta, output, force)
    made = prepare(request)
    for note in made.notes:
        streams.warn(note)
    streams.document(
        calibration_document(
            made.calibration, str(output), made.column, made.stable_alarms, made.notes
        )
    )
    for line in calibration_lines(made.calibration, str(output), made.column):
        streams.say(line)
    return 0


@command.command("watch")
@click.argument("losses", metavar="LOSSES")
@click.option(
    "--state",
    "state",
    default="drift.json",
    show_default=True,
    type=click.Path(path_type=Path),
    help="What drift calibrate wrote; goes on from there.",
)
@click.option("--column", metavar="NAME", help="Default the one that was calibrated on.")
@click.option("--all", "every_alarm", is_flag=True, help="Do not stop at the first alarm.")
@everywhere
@click.pass_obj
def watch_command(
    streams: Streams, /, losses: str, state: Path, column: str | None, every_alarm: bool
) -> int:
    """Watch the rows of a stream that are new since the last time.

    \b
    clmerge drift watch losses.jsonl
    tail -n 0 -f losses.jsonl | clmerge drift watch - --all

    LOSSES: JSON lines, csv or plain numbers; - is stdin.
    Exit codes: 0 no alarm, 12 an alarm.
    """
    from mergekit_cl.drifting.follow import Outcome, Sighting, watch_file, watch_stdin
    from mergekit_cl.drifting.reading import STDIN
    from mergekit_cl.drifting.statefile import StateFile
    from mergekit_cl.report.drift import alarm_line, watch_document, watch_summary
    from mergekit_cl.report.text import print_lines

    def tell(alarm: Sighting, outcome: Outcome) -> None:
        if not streams.json:
            print_lines([alarm_line(alarm, outcome)])
            sys.stdout.flush()

    kept = StateFile(state)
    if losses == STDIN:
        found = watch_stdin(kept, column, tell, streams.warn, every_alarm=every_alarm)
    else:
        found = watch_file(Path(losses), kept, column, tell, every_alarm=every_alarm)
    for note in found.notes:
        streams.warn(note)
    streams.document(watch_document(found, str(state)))
    streams.say(watch_summary(found))
    if isinstance(found.ended, int):
        return SIGNALLED + found.ended
    return DRIFT if found.alarms else 0
