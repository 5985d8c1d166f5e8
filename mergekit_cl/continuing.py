"""What an interrupted run left in its temporary place that need not be made again."""

from __future__ import annotations

from pathlib import Path

from mergekit_cl.methods.method import Method
from mergekit_cl.output.durable import make_folders
from mergekit_cl.output.journal import Journal
from mergekit_cl.output.shards import ShardFiles
from mergekit_cl.plan import Plan
from mergekit_cl.record import from_entries
from mergekit_cl.results import TensorResult
from mergekit_cl.unchanged import trusted


def finished_tensors(
    method: Method, plan: Plan, journal: Journal, files: ShardFiles
) -> dict[str, TensorResult]:
    """The tensors of whole files that the journal holds, made of the inputs as they are now."""
    whole = {shard.file for shard in plan.layout.shards if files.is_whole(shard)}
    entries = [entry for entry in journal.read() if entry["shard"] in whole]
    return trusted(entries, from_entries(entries, plan.layout), method, plan)


def open_carry(plan: Plan, folder: Path) -> tuple[ShardFiles, bool] | None:
    """The file residuals go to, with what is in it already, and whether it had to be made.

    None where the plan keeps no residuals.
    """
    if plan.carry is None:
        return None
    make_folders(folder)
    files = ShardFiles(folder, plan.carry)
    is_new = not files.is_whole(plan.carry.shards[0])
    files.reopen(plan.carry.shards[0])
    return files, is_new
