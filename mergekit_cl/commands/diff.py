"""`clmerge diff`."""

from __future__ import annotations

from typing import Any

import click

from mergekit_cl.commands.compare_options import compare_options, make_request
from mergekit_cl.commands.options import everywhere
from mergekit_cl.commands.report_files import check_page, write_page
from mergekit_cl.commands.streams import Streams


@click.command("diff")
@click.argument("model", metavar="A")
@click.argument("parent", metavar="B")
@click.option("--fisher", metavar="PATH", help="Sidecar of B; default the one in its folder.")
@compare_options
@everywhere
@click.pass_obj
def command(streams: Streams, /, model: str, parent: str, fisher: str | None, **values: Any) -> int:
    """Tell how far a checkpoint is from another, such as a merge from a parent.

    \b
    clmerge diff merged A
    clmerge diff merged A --data val.jsonl
    """
    from mergekit_cl.comparing.report import document
    from mergekit_cl.comparing.run import compare
    from mergekit_cl.report.comparison import cost, print_comparison

    check_page(values["html"])
    request = make_request(model, [parent], [] if fisher is None else [fisher], values)
    with streams.progress() as start:
        found = compare(request, start)
    write_page(values["html"], found, judged=False)
    streams.document(document(found))
    if not streams.json:
        print_comparison(found, top=values["top"], verdict=False)
    streams.say(cost(found))
    return 0
