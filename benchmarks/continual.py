"""How much do EWC and replay keep? Sequences of tasks on digits, clothes and newsgroups.

    python benchmarks/continual.py --work DIR                   runs what is missing, prints tables
    python benchmarks/continual.py --work DIR --only 'mnist/*'  a part of it
    python benchmarks/continual.py --work DIR --list            what would run
    python benchmarks/continual.py --work DIR --write           the tables into docs/continual.md;
                                                                one that was not run stays

Each cell (suite/setting/method/seed) is a file in DIR, so that the run can be stopped and taken up
again, or shared between processes with different --only. Set OMP_NUM_THREADS=1. Everything together
takes about an hour of one core: digits 10 minutes, clothes 25, permuted digits 15, newsgroups 10.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.continual_data import Data, load
from benchmarks.continual_learners import learn
from benchmarks.continual_suites import Cell, cells
from benchmarks.continual_tables import Matrix, tables, write
from examples.fetch import FetchError
from mergekit_cl.decide.task_matrix import summarise


def run(wanted: list[Cell], work: Path) -> None:
    """Run every cell that has no file yet."""
    loaded: dict[str, Data] = {}
    missing = [cell for cell in wanted if not (work / cell.file).exists()]
    for place, cell in enumerate(missing, start=1):
        if (work / cell.file).exists():
            continue  # another process was here since
        name = cell.suite.data
        if name not in loaded:
            loaded[name] = load(name)
        begun = time.process_time()
        tasks = cell.suite.tasks(loaded[name], cell.setting)
        matrix = learn(tasks, cell.setting, cell.method, cell.suite.schedule, cell.seed)
        seconds = time.process_time() - begun
        text = json.dumps({"cell": cell.name, "seconds": seconds, "accuracy": matrix})
        fresh = work / f"{cell.file}.new"
        fresh.write_text(text + "\n")
        fresh.replace(work / cell.file)
        average = summarise(matrix, better="higher").average
        print(
            f"{place}/{len(missing)} {cell.name}: {average:.3f}, {seconds:.0f} s",
            file=sys.stderr,
            flush=True,
        )


def results(wanted: list[Cell], work: Path) -> dict[Cell, Matrix]:
    """The matrices of the cells that were run."""
    found = {}
    for cell in wanted:
        if (work / cell.file).exists():
            found[cell] = json.loads((work / cell.file).read_text())["accuracy"]
    return found


def main(arguments: list[str]) -> int:
    """Run, then print the tables or write them into the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True, help="a folder for results")
    parser.add_argument("--only", default="*", help="a pattern of suite/setting/method/seed")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--list", action="store_true", help="name the cells that would run")
    parser.add_argument("--write", action="store_true", help="write what there is into the docs")
    given = parser.parse_args(arguments)
    every = cells(given.seeds)
    wanted = [cell for cell in every if fnmatch.fnmatchcase(cell.name, given.only)]
    given.work.mkdir(parents=True, exist_ok=True)
    if given.list:
        print("\n".join(c.name for c in wanted if not (given.work / c.file).exists()))
        return 0
    try:
        run(wanted, given.work)
    except FetchError as error:
        print(f"error: {error}\n  try: the same command again", file=sys.stderr)
        return 1
    found = results(every, given.work)
    if given.write:
        write(lambda shown: tables(found, shown))
    else:
        print(tables(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
