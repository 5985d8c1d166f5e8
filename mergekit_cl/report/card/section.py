"""What a merge's model card says of the merge, in Markdown; words from files are code spans."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mergekit_cl.divergence.summary import Divergence, worst_layers
from mergekit_cl.repeating import command_again
from mergekit_cl.report.amounts import number
from mergekit_cl.report.markdown import code as code_span
from mergekit_cl.report.text import shown

BEGIN = "<!-- clmerge -->"
END = "<!-- /clmerge -->"
WORST = 3
COLUMNS = ("rel_l2", "survival", "predicted_kl")


def without_section(body: str) -> str:
    """A card's text less what an earlier merge wrote into it."""
    return re.sub(rf"{re.escape(BEGIN)}.*?{re.escape(END)}\s*", "", body, flags=re.DOTALL)


def section(
    manifest: Mapping[str, Any], divergence: Divergence | None, licensed: Mapping[str, str]
) -> str:
    """Inputs, method, verdict, the layers that moved most, the command that makes it again.

    licensed: the license that each input's card names.
    """
    lines = [
        BEGIN,
        "## How this model was made",
        "",
        f"By {code('clmerge ' + manifest['command'])}, version "
        f"{code(manifest['versions']['clmerge'])}.",
        "",
        *_inputs(manifest),
        f"The result has the weights digest {code(manifest['outputs'][0]['weights_digest'])}.",
        "",
        *_licenses(licensed),
        *_verdict(divergence),
        *_again(manifest),
        "Every tensor's digest is in `clmerge/manifest.json`"
        + (", every number in `clmerge/divergence.json`." if divergence is not None else "."),
        END,
    ]
    return "\n".join(lines) + "\n"


def code(text: str) -> str:
    """A code span that holds no comment either: the section's own end is one."""
    return code_span(text.replace("<!--", "<\\x21--"))


def _inputs(manifest: Mapping[str, Any]) -> list[str]:
    inputs, options = manifest["inputs"], manifest["options"]
    weights = [number(weight) for weight in options.get("weights", [])]
    if "scales" in options:
        weights = ["", *(f"scale {number(scale)}" for scale in options["scales"])]
    if "decays" in options:
        weights = ["state", *(f"decay {decay}" for decay in options["decays"])]
    lines = ["| | place | weight | weights digest |", "|---|---|---|---|"]
    count = 0
    for one in inputs:
        place = code(one["path"])
        if one.get("revision"):
            place += f" at {code(one['revision'])}"
        weight = ""
        if one["role"] in ("input", "adapter"):
            weight = weights[count] if count < len(weights) else ""
            count += 1
        digest = code(one["weights_digest"]) if one["weights_digest"] else ""
        lines.append(f"| {one['role']} | {place} | {weight} | {digest} |")
    return [*lines, ""]


def _licenses(licensed: Mapping[str, str]) -> list[str]:
    if len(set(licensed.values())) < 2:
        return []
    said = ", ".join(f"{code(path)}: {code(name)}" for path, name in licensed.items())
    return [f"The inputs name different licenses ({said}); this card keeps the first's.", ""]


def _verdict(divergence: Divergence | None) -> list[str]:
    if divergence is None:
        return []
    verdict = divergence.verdict
    lines = [f"Verdict: **{'lossy' if verdict.lossy else 'ok'}**", ""]
    lines += [f"- {code(reason)}" for reason in verdict.reasons]
    rows = worst_layers(divergence, "rel_l2", WORST)
    columns = [column for column in COLUMNS if any(r.metrics[column] is not None for r in rows)]
    if rows:
        lines += [
            *([""] if verdict.reasons else []),
            f"| moved most | from | {' | '.join(columns)} |",
            f"|---|---|{'---:|' * len(columns)}",
            *(
                f"| {code(row.name)} | {code(row.parent)} | "
                f"{' | '.join(number(row.metrics[column]) for column in columns)} |"
                for row in rows
            ),
        ]
    return [*lines, ""]


def _again(manifest: Mapping[str, Any]) -> Sequence[str]:
    command = command_again(manifest)
    if command is None:
        return []
    safe = shown(command).replace("<!--", "<\\x21--")
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", safe)), default=0))
    return ["The command that makes it again:", "", f"{fence}sh", safe, fence, ""]
