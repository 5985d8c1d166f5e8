"""`ewc.lambda = "auto"`: candidates are tried by short runs before the run itself begins.

Every trial is a run in a folder beside the run's own, removed when what it says is kept. The same
command goes on after an interruption with the trials that are left.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekit_cl.checkpoint import open_checkpoint
from mergekit_cl.continual.ewc import penalty_value
from mergekit_cl.digest import bytes_digest
from mergekit_cl.errors import FormatError, Interrupted, NonFiniteError, OptionError
from mergekit_cl.launched import launched
from mergekit_cl.output.durable import write_durably
from mergekit_cl.sidecar import Sidecar, open_sidecar
from mergekit_cl.training.model import build
from mergekit_cl.tuning.protecting import protection_from_sidecar
from mergekit_cl.tuning.reading import config_text
from mergekit_cl.tuning.rundir import RunFolder
from mergekit_cl.tuning.schema import Config, Ewc, Task
from mergekit_cl.tuning.trials import Trial, best_trial, curve, within_budget

FORMAT = "clmerge.strength/1"
FILE = "strength.json"


@dataclass(frozen=True)
class Learned:
    """What a trial's run left. losses: {task: held-out loss at the end}, nats per token."""

    model: Path
    losses: Mapping[str, float]


Learn = Callable[[Config], Learned]
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Strength:
    """lambda as a number, and how it was found: the content of strength.json; None if given."""

    value: float
    found: Mapping[str, Any] | None = None


def strength_of(
    config: Config,
    folder: RunFolder,
    *,
    resume: bool,
    continues: bool,
    judged: Collection[str],
    learn: Learn,
    tell: Tell,
) -> Strength:
    """The lambda that a config asks for; trains for it where that is "auto".

    resume: what was found when the run began holds. continues: earlier tasks come with another
    run. judged: tasks of both that have held-out rows. learn: trains one config into its output,
    anew. Raises OptionError where nothing can be found out, with what is lacking.
    """
    ewc = config.ewc
    if ewc is None or ewc.strength != "auto":
        return Strength(0.0 if ewc is None else float(ewc.strength))
    if resume:
        return _found(folder)
    tasks = tasks_to_try(config, ewc, continues=continues, judged=judged)
    if ewc.auto.budget is not None:
        _check_calibrated(ewc)
    place = _place(folder)
    recipe = bytes_digest(f"{config_text(config)}{continues}".encode())
    done = _read(place, recipe)
    values = values_to_try(ewc)
    tell(f"trying {len(values)} values of lambda on {', '.join(task.name for task in tasks)}")
    before: Path | None = None
    for value in values:
        if value not in [trial.strength for trial in done]:
            trial = trial_config(config, ewc, value, tasks, place)
            done.append(_tried(trial, value, learn))
            # Only now: all processes have been in this trial, so none reads the last one's model.
            _remove(before)
            before = Path(trial.output)
            _write(place, recipe, done)
    budget = ewc.auto.budget
    chosen = best_trial(done) if budget is None else within_budget(done, budget)
    for line in curve(done, chosen):
        tell(line)
    return Strength(
        chosen.strength,
        {
            "format": FORMAT,
            "chosen": chosen.strength,
            "tasks": [task.name for task in tasks],
            "budget": budget,
            "trials": [trial.to_json() for trial in done],
        },
    )


def values_to_try(ewc: Ewc | None) -> list[float]:
    """What trials are made of: the candidates, and for comparison 0; none where lambda is given."""
    if ewc is None or ewc.strength != "auto":
        return []
    return [*([0.0] if ewc.auto.budget is None else []), *sorted(set(ewc.auto.candidates))]


def keep_strength(folder: RunFolder, strength: Strength) -> None:
    """Write what was found into the run, whose folder is there, and remove what the trials left."""
    if strength.found is not None:
        text = json.dumps(strength.found, indent=2, sort_keys=True)
        write_durably(folder.root / FILE, f"{text}\n".encode())
        shutil.rmtree(_place(folder), ignore_errors=True)


def _found(folder: RunFolder) -> Strength:
    try:
        found = json.loads((folder.root / FILE).read_bytes())
        return Strength(float(found["chosen"]), found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FormatError(
            "the lambda that this run was begun with cannot be read",
            detail=f"{folder.root / FILE}: {error!r:.160}",
            hint="begin it anew: the same command with --force in place of --resume",
        ) from error


def tasks_to_try(
    config: Config, ewc: Ewc, *, continues: bool, judged: Collection[str]
) -> list[Task]:
    """The tasks of a trial: those named, else all for a budget, else all but the last.

    The last is left out so that lambda is not fitted to it, unless nothing would be protected then.
    judged: tasks with held-out rows. Raises OptionError where a trial would tell nothing.
    """
    unknown = set(ewc.auto.tasks) - {task.name for task in config.task}
    if unknown:
        raise OptionError(
            "ewc.auto.tasks names what is no task",
            detail=", ".join(sorted(unknown)),
            hint=f"the tasks are {', '.join(task.name for task in config.task)}",
        )
    named = [task for task in config.task if task.name in ewc.auto.tasks]
    least = 1 if continues or ewc.auto.budget is not None else 2
    tasks = named or list(config.task)
    if not named and ewc.auto.budget is None and len(tasks) > least:
        tasks = tasks[:-1]
    if len(tasks) < least:
        raise OptionError(
            "there is nothing to find lambda on: it takes two tasks to see one forgotten",
            detail=f"the trials would train {', '.join(task.name for task in tasks)} alone",
            hint="add a task, --continue a run, or set ewc.auto.budget with a calibrated sidecar",
        )
    if ewc.auto.budget is None:
        _check_judged(tasks, judged, {task.name for task in config.task})
    return tasks


def _check_judged(tasks: list[Task], judged: Collection[str], own: Collection[str]) -> None:
    """Raise OptionError where what is forgotten, or what is learned, could not be seen."""
    lacking = [task.name for task in tasks if task.name not in judged]
    seen = f"no held-out rows for {', '.join(lacking)}"
    if not lacking and len(tasks) == 1 and not set(judged) - set(own):
        lacking, seen = ["the earlier run"], "the earlier run kept no held-out rows of its tasks"
    if lacking:
        raise OptionError(
            "there is nothing to find lambda on: trials are judged by held-out rows",
            detail=seen,
            hint="set validation or validation_share, name other tasks in ewc.auto.tasks, or set "
            "ewc.auto.budget with a calibrated sidecar",
        )


def trial_config(config: Config, ewc: Ewc, value: float, tasks: list[Task], place: Path) -> Config:
    """A run with this lambda, of these tasks, without what decides nothing about their losses."""
    if ewc.auto.steps is not None:
        shorter = {"steps": ewc.auto.steps, "epochs": None}
        tasks = [task.model_copy(update=shorter) for task in tasks]
    return config.model_copy(
        update={
            "task": tasks,
            "ewc": ewc.model_copy(update={"strength": value}),
            "output": str(place / f"lambda-{value:g}"),
            "ema": config.ema and config.ema.model_copy(update={"snapshot_every": 0}),
            "gate": None,
            "drift": None,
            "fisher": False,
            "trackers": [],
        }
    )


def predicted_forgetting(config: Config, ewc: Ewc, model: Path) -> float:
    """Nats per token that the earlier task worst off loses by a model, by calibrated sidecars.

    model: what a run wrote, a checkpoint or an adapter. calibration/2 sum F (theta - anchor)^2.
    """
    worst = 0.0
    with ExitStack() as stack:
        base = stack.enter_context(open_checkpoint(config.model if config.lora else model))
        built = build(base, adapter=model if config.lora else None)
        parameters = dict(built.model.named_parameters())
        for sidecar, anchor in zip(_sidecars(ewc), ewc.anchors, strict=True):
            stack.enter_context(sidecar.checkpoint)
            held = protection_from_sidecar(
                built, sidecar, stack.enter_context(open_checkpoint(anchor))
            )
            said = sidecar.metadata
            per_example = said["calibration"] * float(penalty_value(parameters, held, 1.0))
            worst = max(worst, per_example * said["examples"] / said["tokens"])
    return worst


def _tried(config: Config, value: float, learn: Learn) -> Trial:
    ewc = config.ewc
    assert ewc is not None
    forgetting = None
    try:
        learned = learn(config)
        if ewc.auto.budget is not None:
            forgetting = predicted_forgetting(config, ewc, learned.model)
    except NonFiniteError:
        return Trial(value, {}, diverged=True)
    except Interrupted as error:
        error.hint = "the same command goes on with the trials that are left"
        raise
    if forgetting is not None and not math.isfinite(forgetting):
        return Trial(value, {}, diverged=True)
    return Trial(value, learned.losses, forgetting)


def _remove(folder: Path | None) -> None:
    if folder is not None and launched().rank == 0:
        shutil.rmtree(folder, ignore_errors=True)


def _check_calibrated(ewc: Ewc) -> None:
    lacking = [s for s in _sidecars(ewc) if not s.metadata.get("calibration")]
    if lacking or not ewc.sidecars:
        raise OptionError(
            "a budget of forgetting needs sidecars that predict it in nats",
            detail="ewc.sidecars is empty"
            if not lacking
            else f"{lacking[0].checkpoint.path} is not calibrated",
            hint="clmerge fisher MODEL --data FILE --base BASE, or no ewc.auto.budget",
        )


def _sidecars(ewc: Ewc) -> list[Sidecar]:
    return [open_sidecar(Path(path)) for path in ewc.sidecars]


def _place(folder: RunFolder) -> Path:
    return folder.root.with_name(f".{folder.root.name}.strength")


def _read(place: Path, recipe: str) -> list[Trial]:
    """The trials that are done, of this very config."""
    try:
        found = json.loads((place / "trials.json").read_bytes())
    except (OSError, ValueError):
        return []
    if found["recipe"] != recipe:
        return []
    return [Trial.from_json(value) for value in found["trials"]]


def _write(place: Path, recipe: str, done: list[Trial]) -> None:
    if launched().rank == 0:
        place.mkdir(parents=True, exist_ok=True)
        content = {"recipe": recipe, "trials": [trial.to_json() for trial in done]}
        write_durably(place / "trials.json", json.dumps(content).encode())
