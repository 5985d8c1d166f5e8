"""What a merge leaves beside its weights: companions, card, manifest, report, residuals."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit_cl.carry import FILE as CARRY_FILE
from mergekit_cl.carry import sealed_header
from mergekit_cl.companions import change_companions, copy_companions, cut_vocabulary
from mergekit_cl.divergence.summary import Divergence, to_json
from mergekit_cl.inplace import link_others
from mergekit_cl.manifest import write_json
from mergekit_cl.methods.method import Method
from mergekit_cl.output.target import is_single_file, side_folder
from mergekit_cl.plan import Plan
from mergekit_cl.report.card.card import write_card
from mergekit_cl.report.html.content import merge_content
from mergekit_cl.report.html.library import HINT, plotting_library
from mergekit_cl.report.html.page import render_page
from mergekit_cl.results import TensorResult

if TYPE_CHECKING:
    from mergekit_cl.merging import OutputOptions

PAGE = "report.html"


def write_beside(
    method: Method,
    plan: Plan,
    options: OutputOptions,
    out: Path,
    results: Mapping[str, TensorResult],
    made: dict[str, Any],
    divergence: Divergence | None,
) -> tuple[str, ...]:
    """Complete the folder `out`, whose weights are there; returns notes on what could not be.

    results: of the stream. made: the manifest. divergence: None where no report is wanted.
    """
    target = options.target
    first = method.checkpoints[0]
    side = out / side_folder(target).name
    _remove_but(out, {side.name, *(shard.file for shard in plan.layout.shards)})
    if is_single_file(target):
        made["outputs"][0]["files"][0]["name"] = target.name
    else:
        if options.in_place:
            link_others(first, out)
        if method.companions is not None:
            method.companions(out)
        elif first.folder:
            copy_companions(first.root, out, _common_dtype(plan))
            change_companions(out, plan.config, plan.tokenizer)
            if options.vocab == "common" and plan.resized.rows:
                smallest = method.checkpoints[plan.resized.smallest]
                cut_vocabulary(out, smallest, min(plan.resized.rows.values()))
        if method.companions is None:
            write_card(out, method.checkpoints, made, divergence)
        if plan.layout.index is not None:
            (out / plan.layout.index_name).write_bytes(plan.layout.index)
    if method.beside is not None:
        made.update(method.beside(out, side, plan, results))
    write_json(side / "manifest.json", made)
    if plan.carry is not None:
        digest = made["outputs"][0]["weights_digest"]
        with (side / CARRY_FILE).open("r+b") as stream:
            stream.write(sealed_header(plan.carry, digest, method.updates))
    if divergence is None:
        return ()
    write_json(side / "divergence.json", to_json(divergence))
    library = plotting_library()
    if library is None:
        return (f"no {PAGE}: plotly, which draws it, is not installed ({HINT})",)
    content = merge_content(divergence, made, options.policy, carried=plan.carry is not None)
    (side / PAGE).write_text(render_page(content, library), encoding="utf-8")
    return ()


def _remove_but(folder: Path, kept: set[str]) -> None:
    """Companions of an earlier attempt go: those of the inputs may have changed since."""
    for entry in folder.iterdir():
        if entry.name in kept:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _common_dtype(plan: Plan) -> str | None:
    """The dtype of most weights, by bytes; what config.json should say."""
    sizes: dict[str, int] = {}
    for tensor in (t for shard in plan.layout.shards for t in shard.header.tensors):
        if tensor.is_float:
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.nbytes
    return max(sizes, key=lambda dtype: sizes[dtype]) if sizes else None
