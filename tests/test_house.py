"""The house keeps its walls: who may import whom, no circles, small files, every purpose said."""

from __future__ import annotations

import ast
import fnmatch
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("mergekit_cl", "fisher")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
OWN = set(PACKAGES)
LIBRARIES = {"click", "rich", "torch", "numpy", "numba", "safetensors", "transformers", "peft"}
LIBRARIES |= {"accelerate", "pydantic", "yaml"}


class Import(NamedTuple):
    """One import; `now` says that it runs when its module is imported."""

    module: str
    target: str
    now: bool


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> list[Import]:
    """Every import but those for type checkers alone."""
    module = name_of(path)
    found: list[Import] = []

    def walk(node: ast.AST, now: bool) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for inner in node.orelse:
                walk(inner, now)
            return
        if isinstance(node, ast.Import):
            found.extend(Import(module, alias.name, now) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            assert node.module is not None
            # `from package import module` means the module.
            for alias in node.names:
                inner_name = f"{node.module}.{alias.name}"
                is_module = (ROOT / inner_name.replace(".", "/")).with_suffix(".py").is_file()
                is_package = (ROOT / inner_name.replace(".", "/")).is_dir()
                target = inner_name if is_module or is_package else node.module
                found.append(Import(module, target, now))
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            walk(child, now and not inside)

    walk(ast.parse(path.read_text()), True)
    return found


IMPORTS = [one for path in MODULES for one in imports_of(path)]


def within(module: str, *places: str) -> bool:
    return any(module == place or module.startswith(place + ".") for place in places)


def top(target: str) -> str:
    return target.partition(".")[0]


def offenders(wrong: Iterator[Import]) -> list[str]:
    return sorted({f"{one.module} imports {one.target}" for one in wrong})


def test_there_is_something_to_check() -> None:
    assert len(MODULES) > 50
    assert any(one.target == "torch" and not one.now for one in IMPORTS)
    assert any(one.target == "mergekit_cl.errors" and one.now for one in IMPORTS)


def test_fisher_knows_neither_the_tool_nor_its_display() -> None:
    allowed = {"torch", "safetensors", "numpy", "fisher", "transformers"} | sys.stdlib_module_names
    mine = [one for one in IMPORTS if within(one.module, "fisher")]
    assert offenders(one for one in mine if top(one.target) not in allowed) == []
    eager = [one for one in mine if one.now]
    assert offenders(one for one in eager if top(one.target) == "transformers") == []


@pytest.mark.parametrize("room", ["mergekit_cl.merge", "mergekit_cl.divergence"])
def test_formulas_know_no_files(room: str) -> None:
    allowed = {"torch", "numpy"} | sys.stdlib_module_names
    rooms = [f"mergekit_cl.{name}" for name in ("merge", "divergence", "decide", "native.kernel")]
    files = {"os", "io", "pathlib", "mmap", "shutil", "tempfile"}
    for one in IMPORTS:
        if within(one.module, room):
            assert within(one.target, *rooms) or top(one.target) in allowed - files, one


def test_one_room_alone_knows_compilers() -> None:
    compilers = [one for one in IMPORTS if top(one.target) in ("numba", "llvmlite")]
    assert compilers
    assert offenders(o for o in compilers if not within(o.module, "mergekit_cl.native")) == []
    code = [o for o in IMPORTS if within(o.target, "mergekit_cl.native") and o.now]
    outside = (o for o in code if not within(o.module, "mergekit_cl.native"))
    assert offenders(o for o in outside if o.target != "mergekit_cl.native.kernel") == []


def test_decisions_are_pure() -> None:
    files = {"os", "io", "pathlib", "mmap", "shutil", "tempfile", "subprocess"}
    allowed = {"numpy"} | sys.stdlib_module_names - files
    mine = [one for one in IMPORTS if within(one.module, "mergekit_cl.decide")]
    wrong = (one for one in mine if top(one.target) not in allowed)
    assert not [
        one for one in wrong if not within(one.target, "mergekit_cl.decide", "mergekit_cl.errors")
    ]


def test_holding_back_knows_no_engine_and_no_files() -> None:
    allowed = {"torch", "numpy", "transformers"} | sys.stdlib_module_names
    files = {"os", "io", "pathlib", "mmap", "shutil", "tempfile"}
    plain = ("continual", "errors", "merge", "digest", "training.rows")
    plain += ("native.kernel", "checkpoint.arrays")
    own = [f"mergekit_cl.{name}" for name in plain]
    mine = [one for one in IMPORTS if within(one.module, "mergekit_cl.continual")]
    foreign = [o for o in mine if not (within(o.target, *own) or top(o.target) in allowed - files)]
    assert mine
    assert offenders(iter(foreign)) == []
    engines = [one for one in mine if top(one.target) == "transformers"]
    wrong = (o for o in engines if o.now or o.module != "mergekit_cl.continual.trainer")
    assert offenders(wrong) == []


def test_the_library_does_not_know_the_command_line() -> None:
    front = ("mergekit_cl.commands", "mergekit_cl.cli", "mergekit_cl.__main__")
    library = [one for one in IMPORTS if not within(one.module, *front)]
    assert offenders(one for one in library if within(one.target, *front, "click")) == []


def test_only_the_report_knows_the_display() -> None:
    rich = [one for one in IMPORTS if top(one.target) == "rich"]
    assert rich
    assert offenders(one for one in rich if not within(one.module, "mergekit_cl.report")) == []


def test_model_libraries_stay_where_models_are_built() -> None:
    heavy = {"transformers", "peft", "accelerate"}
    places = ("mergekit_cl.training", "mergekit_cl.tuning", "mergekit_cl.continual.trainer")
    places += ("fisher",)
    found = [one for one in IMPORTS if top(one.target) in heavy]
    assert found
    assert offenders(one for one in found if not within(one.module, *places)) == []
    late = ("mergekit_cl.tuning", "fisher")
    assert offenders(one for one in found if one.now and within(one.module, *late)) == []


def test_commands_load_click_alone_until_they_run() -> None:
    heavy = LIBRARIES - {"click"}
    front = [
        one for one in IMPORTS if within(one.module, "mergekit_cl.commands", "mergekit_cl.cli")
    ]
    assert offenders(one for one in front if one.now and top(one.target) in heavy) == []


def test_help_and_usage_errors_load_click_alone() -> None:
    code = (
        "import sys\n"
        "from mergekit_cl.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit:\n    pass\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)\n"
    )
    lines = (
        ["--help"],
        ["train", "--help"],
        ["linear-merge"],
        ["linear-merge", "a", "b", "--no-such-option"],
    )
    for arguments in lines:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
        )
        loaded = set(ast.literal_eval(done.stderr.splitlines()[-1]))
        assert "click" in loaded
        assert loaded & (LIBRARIES - {"click"}) == set(), arguments


def test_only_one_file_knows_the_layout_of_safetensors() -> None:
    holders = [name_of(p) for p in MODULES if "data_offsets" in p.read_text()]
    assert holders == ["mergekit_cl.checkpoint.header"]
    users = {one.module for one in IMPORTS if top(one.target) == "safetensors"}
    assert not {user for user in users if within(user, "mergekit_cl.checkpoint")}


def test_merge_formulas_use_no_fused_operation() -> None:
    # lerp, addcmul, addcdiv and add(alpha=) give other bits on other vector units.
    for path in (ROOT / "mergekit_cl/merge").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                assert not node.attr.startswith(("lerp", "addcmul", "addcdiv")), path
            if isinstance(node, ast.Call):
                assert "alpha" not in {keyword.arg for keyword in node.keywords}, path


def test_no_imports_go_in_circles() -> None:
    # What runs at import; a package's own __init__ is the table of contents of its modules.
    names = {name_of(path) for path in MODULES}
    packages = {name_of(path) for path in MODULES if path.name == "__init__.py"}
    graph = {
        name: {
            one.target
            for one in IMPORTS
            if one.module == name and one.now and one.target in names and one.target != name
        }
        for name in names
    }
    for package in packages:
        for inner in graph[package]:
            assert package not in graph.get(inner, set()), f"{inner} imports its own package"
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name in done:
            return
        for other in sorted(graph[name]):
            visit(other, (*path, name))
        done.add(name)

    for name in sorted(graph):
        visit(name, ())


def test_every_module_imports_alone() -> None:
    code = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]"
    light = [name_of(p) for p in MODULES if p.name != "__main__.py"]
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, *light[::-1]], check=True)


def test_fisher_is_ours_and_shipped() -> None:
    # Another package of this name exists (Fisher's exact test); tests/fisher must not hide ours.
    import fisher

    assert Path(fisher.__file__).parent == ROOT / "fisher"
    assert not (ROOT / "tests/fisher/__init__.py").exists()
    settings = (ROOT / "pyproject.toml").read_text()
    section = settings.split("[tool.setuptools.packages.find]")[1].split("[tool")[0]
    include = re.findall(r'"([^"]+)"', section)
    for path in MODULES:
        package = name_of(path.parent / "__init__.py")
        assert (path.parent / "__init__.py").is_file(), f"{package} would not be shipped"
        assert any(fnmatch.fnmatchcase(package, pattern) for pattern in include), package


def test_types_are_shipped() -> None:
    for package in PACKAGES:
        assert (ROOT / package / "py.typed").is_file()


def everything() -> list[Path]:
    folders = [*PACKAGES, "tests", "examples", "benchmarks"]
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def test_no_file_is_longer_than_four_hundred_lines() -> None:
    long = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in everything()}
    assert {name: lines for name, lines in long.items() if lines > 400} == {}


def test_the_median_file_is_small() -> None:
    lengths = sorted(len(path.read_text().splitlines()) for path in MODULES)
    assert lengths[len(lengths) // 2] <= 150


def test_every_module_class_and_public_function_says_its_purpose() -> None:
    silent = []
    for path in MODULES:
        tree = ast.parse(path.read_text())
        if ast.get_docstring(tree) is None:
            silent.append(name_of(path))
        kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
        public = [
            node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")
        ]
        silent += [f"{name_of(path)}.{n.name}" for n in public if ast.get_docstring(n) is None]
    assert [name for name in silent if name != "mergekit_cl.__main__"] == []


def test_no_module_is_called_utils() -> None:
    names = {part for path in MODULES for part in path.with_suffix("").parts}
    assert not names & {"utils", "util", "helpers", "misc", "common"}


def test_nothing_is_left_to_do() -> None:
    marks = re.compile(r"#.*\b(TODO|FIXME|XXX)\b")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in MODULES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if marks.search(line)
    ]
    assert found == []
