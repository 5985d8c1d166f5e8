"""What `clmerge gate` found, in words and as a table on stdout."""

from __future__ import annotations

from mergekit_cl.decide.gate import Comparison
from mergekit_cl.gating.gate import Judged, Verdict
from mergekit_cl.gating.run import Outcome
from mergekit_cl.report.amounts import duration, number
from mergekit_cl.report.text import columns, log_line, print_lines, shown

HEAD = ("suite", "against", "rows", "delta", "bounds", "margin", "alpha", "power", "decision")
UNWIELDY = 1e5


def print_gate(outcome: Outcome) -> None:
    """Print models, the table, what it rests on, the decision and what to do, on stdout."""
    models = outcome.measured.models
    lines = [
        *columns([(role, shown(one.path)) for role, one in models.items()]),
        "",
        *columns([HEAD, *map(cells, outcome.verdict.judged)], right=frozenset({2, 3, 5, 6, 7})),
        "delta: nats per token that the candidate has more; alpha: the probability to miss a bound",
        "",
        *facts(outcome),
        f"decision: {outcome.verdict.decision}",
        *(f"  - {line}" for line in reasons(outcome)),
        *(f"  try: {line}" for line in advice(outcome)),
    ]
    # Names in it come from files; terminals and workflows obey some of what they may hold.
    print_lines([log_line(line) for line in lines])


def cells(one: Judged) -> tuple[str, ...]:
    """One comparison as a row under `HEAD`."""
    found = one.comparison
    return (
        shown(one.suite),
        one.against,
        f"{found.rows:,}",
        signed(found.delta),
        "-" if found.interval is None else " to ".join(map(signed, found.interval)),
        number(found.margin),
        number(found.alpha),
        f"{found.power:.0%}",
        found.decision,
    )


def look_line(verdict: Verdict, step: int) -> str:
    """One look of a training run: the decision, and the comparison that it hangs on most."""
    deciding = [one for one in verdict.judged if one.comparison.decision == verdict.decision]
    worst = max(deciding, key=lambda one: one.comparison.delta)
    found = worst.comparison
    bounds = "unknown" if found.interval is None else " to ".join(map(signed, found.interval))
    return (
        f"gate at step {step}: {verdict.decision}; {shown(worst.suite)} against the "
        f"{worst.against} {signed(found.delta)} nats per token, bounds {bounds}, "
        f"margin {number(found.margin)}, power {found.power:.0%}"
    )


def facts(outcome: Outcome) -> list[str]:
    """What stands beside the decision: accuracies, looks, notes."""
    lines = []
    for one in outcome.verdict.judged:
        if (changed := one.comparison.mcnemar) is not None:
            lines.append(
                f"{shown(one.suite)} against {one.against}: {changed.better} rows are right that "
                f"were wrong, {changed.worse} wrong that were right "
                f"(exact McNemar test: p = {number(changed.p_value)})"
            )
    looks = {
        one.suite: one
        for one in outcome.verdict.judged
        if one.look is not None and one.comparison.rows >= outcome.rule.min_rows
    }
    for suite, one in looks.items():
        lines.append(
            f"look {one.look} at {shown(suite)}: alpha {number(one.comparison.alpha)} of the "
            f"{number(outcome.rule.alpha)} for all looks, by {outcome.rule.ledger}"
        )
    return [*lines, *(f"note: {shown(note)}" for note in outcome.notes)]


def reasons(outcome: Outcome) -> list[str]:
    """Why: a line for each comparison that was not accepted, or for all where all were."""
    judged = outcome.verdict.judged
    open_ones = [one for one in judged if one.comparison.decision != "accept"]
    return [reason(one) for one in open_ones or judged]


def reason(one: Judged) -> str:
    """What one comparison came to."""
    return f"{shown(one.suite)} against {one.against}: {_came_to(one.comparison)}"


def advice(outcome: Outcome) -> list[str]:
    """What to do next."""
    if outcome.verdict.decision == "accept":
        return []
    if outcome.verdict.decision == "reject":
        return ["keep what is in use; --write-rows FILE tells which rows rose"]
    more: dict[str, int] = {}
    for one in outcome.verdict.judged:
        found = one.comparison
        if found.decision == "inconclusive" and found.rows_needed is not None:
            more[one.suite] = max(more.get(one.suite, 0), found.rows_needed)
    lines = [f"give {shown(suite)} {_about(count)} rows" for suite, count in more.items()]
    lines.append("or, if more loss does no harm, a wider --margin (docs/gate.md)")
    if any((one.look or 1) > 1 for one in outcome.verdict.judged):
        lines.append("or take rows that no look has been spent on")
    return lines


def cost(outcome: Outcome) -> str:
    """How long it took."""
    return duration(outcome.seconds)


def signed(value: float) -> str:
    """'+0.0031'; of huge ones the exponent."""
    return f"{value:+.4f}" if abs(value) < UNWIELDY else f"{value:+.3e}"


def _came_to(found: Comparison) -> str:
    if found.interval is None or found.rows < found.min_rows:
        return f"{found.rows:,} rows decide nothing, {found.min_rows:,} are needed"
    lower, upper = found.interval
    margin = f"margin {number(found.margin)}"
    if found.decision == "accept":
        worse = f"at most {upper:.4f} nats per token worse ({margin})"
        return worse if upper > 0 else f"better by {-upper:.4f} nats per token or more"
    if lower > found.margin:
        return f"worse by {lower:.4f} nats per token or more ({margin})"
    equal = f"an equally good one would be accepted with {found.power:.0%}"
    if found.decision == "reject":
        return f"may be {upper:.4f} nats per token worse ({margin}), though {equal}"
    return (
        f"{found.rows:,} rows leave {signed(lower)} to {signed(upper)} nats per token open "
        f"({margin}); {equal}, from {_about(found.rows_needed)} rows on "
        "with 80%"
    )


def _about(count: int | None) -> str:
    """A count rounded up to two digits: '1,900'."""
    if count is None:
        return "more"
    step = 10 ** max(0, len(str(count)) - 2)
    return f"{-(-count // step) * step:,}"
