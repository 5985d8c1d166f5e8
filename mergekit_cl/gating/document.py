"""A verdict as JSON: `gate --json` and verdict.json."""

from __future__ import annotations

from typing import Any

from mergekit_cl.gating.gate import Judged
from mergekit_cl.gating.run import Outcome

FORMAT = "clmerge.verdict/1"


def document(outcome: Outcome) -> dict[str, Any]:
    """The document; `look` is the latest of any suite, null where looks are not counted."""
    measured, rule = outcome.measured, outcome.rule
    looks = [one.look for one in outcome.verdict.judged if one.look is not None]
    return {
        "format": FORMAT,
        "decision": outcome.verdict.decision,
        "comparisons": [_comparison(one) for one in outcome.verdict.judged],
        "look": max(looks, default=None),
        "digests": {
            **{role: one.digest for role, one in measured.models.items()},
            "data": dict(measured.suites),
        },
        "models": {role: one.path for role, one in measured.models.items()},
        "rule": {
            "margin": rule.margin,
            "alpha": rule.alpha,
            "min_rows": rule.min_rows,
            "seed": rule.seed,
            "draws": rule.draws,
            "max_length": measured.max_length,
            "ledger": None if rule.ledger is None else str(rule.ledger),
        },
        "notes": list(outcome.notes),
        "seconds": round(outcome.seconds, 3),
    }


def _comparison(one: Judged) -> dict[str, Any]:
    found = one.comparison
    changed = found.mcnemar
    return {
        "against": one.against,
        "suite": one.suite,
        "look": one.look,
        "rows": found.rows,
        "tokens": found.tokens,
        "loss": {"candidate": found.new_loss, "other": found.old_loss},
        "delta": found.delta,
        "standard_error": found.standard_error,
        "interval": None if found.interval is None else list(found.interval),
        "margin": found.margin,
        "alpha": found.alpha,
        "power": found.power,
        "rows_needed": found.rows_needed,
        "mcnemar": None
        if changed is None
        else {"better": changed.better, "worse": changed.worse, "p_value": changed.p_value},
        "decision": found.decision,
    }
