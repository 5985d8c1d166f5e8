"""Small training runs: tiny models, a few dozen rows, in this process or a forked one."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from tiny_models import TEXTS

from mergekit_cl.report.progress import Advance, Unit, no_progress
from mergekit_cl.tuning.run import Outcome, train
from mergekit_cl.tuning.schema import Config

VOCABULARY = sorted(set(" ".join(TEXTS).split()))


def write_text(path: Path, rows: int, seed: int, words: Sequence[str] = VOCABULARY) -> Path:
    """Rows of text, drawn from a few words."""
    random = Random(seed)
    lines = [
        json.dumps({"text": " ".join(random.choices(words, k=random.randint(4, 12)))})
        for _ in range(rows)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_labelled(path: Path, rows: int, seed: int, labels: Sequence[str]) -> Path:
    """Rows of text with a label that their first word tells."""
    random = Random(seed)
    lines = []
    for _ in range(rows):
        label = random.randrange(len(labels))
        words = [VOCABULARY[label], *random.choices(VOCABULARY, k=random.randint(3, 9))]
        lines.append(json.dumps({"text": " ".join(words), "label": labels[label]}))
    path.write_text("\n".join(lines) + "\n")
    return path


def config_of(root: Path, model: Path, tasks: dict[str, Path], **settings: Any) -> Config:
    """A config with six steps a task, of which keyword arguments replace sections."""
    steps = settings.pop("steps", 6)
    values = {
        "model": str(model),
        "output": str(root / "run"),
        "task": [{"name": n, "data": [str(path)], "steps": steps} for n, path in tasks.items()],
        "batch": {"rows": 4},
        "optimizer": {"learning_rate": 1e-2},
        **settings,
    }
    return Config.model_validate(values)


def trained(config: Config, **how: Any) -> tuple[Outcome, list[str]]:
    """Train without a word on the terminal; gives the outcome and what was told."""
    told: list[str] = []
    return train(config, progress=how.pop("progress", no_progress), tell=told.append, **how), told


def in_fork(run: Callable[[], object], *, seconds: float | None = None) -> int:
    """Run something in a process of its own; its exit code, or minus the signal that ended it.

    seconds: it is killed then.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            run()
            code = 0
        except BaseException as error:
            traceback.print_exc()
            sys.stderr.write(f"{getattr(error, 'detail', None)}\n")
        finally:
            os._exit(code)
    if seconds is not None:
        ended = os.pidfd_open(child)
        waiting = select.poll()  # select.select takes no descriptor above 1023
        waiting.register(ended, select.POLLIN)
        if not waiting.poll(1000 * seconds):
            os.kill(child, signal.SIGKILL)
        os.close(ended)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def dying_after(count: int, number: int = signal.SIGKILL) -> Callable[..., Advance]:
    """Progress that sends its own process a signal after `count` steps and evaluations."""
    seen = [0]

    def start(title: str, total: int, unit: Unit = "bytes") -> Advance:
        def advance(done: int) -> None:
            seen[0] += 1
            if seen[0] == count:
                os.kill(os.getpid(), number)

        return advance

    return start


def dying_at(title: str, number: int = 1) -> Callable[..., Advance]:
    """Progress that kills its own process where the `number`-th work of this title begins."""
    seen = [0]

    def start(found: str, total: int, unit: Unit = "bytes") -> Advance:
        seen[0] += found == title
        if found == title and seen[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return lambda done: None

    return start


def files_of(root: Path, *, but: Sequence[str] = ()) -> dict[str, bytes]:
    """{name: bytes} of all files below a folder, but for those of these names."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name not in but
    }


def lines_of(path: Path) -> list[dict[str, Any]]:
    """A jsonl file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def steps_of(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's steps."""
    return [line for line in lines_of(run / "metrics.jsonl") if line["kind"] == "step"]
