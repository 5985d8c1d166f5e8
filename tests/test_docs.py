"""The documentation says what the program does: options, keys, codes, digests, command lines."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import signal
import struct
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from blake3 import blake3

import mergekit_cl.errors
from fisher.sidecar import FORMAT, REQUIRED
from mergekit_cl.checkpoint.dtypes import torch_dtype
from mergekit_cl.cli import COMMANDS
from mergekit_cl.commands.drift import DRIFT
from mergekit_cl.commands.gate import EXIT_CODES
from mergekit_cl.commands.merge_run import LOSSY
from mergekit_cl.decide.policy import DEFAULT
from mergekit_cl.digest import PIECE_BYTES, tensor_digest, weights_digest
from mergekit_cl.divergence.metrics import NAMES as METRICS
from mergekit_cl.errors import ClmergeError, Interrupted, OptionError
from mergekit_cl.training.rows import data_digest, row_id
from tests.commands.checkpoints import checkpoint, sidecar
from tests.commands.lines import leaves, options_of, parse, shown_in
from tests.commands.models import SIDECAR, said_by, write_rows
from tests.commands.running import clmerge
from tests.pages import (
    DOCS,
    PAGES,
    ROOT,
    anchor,
    code_blocks,
    commands_md,
    quoted,
    rows_of,
    section,
    table,
)
from tests.tiny_models import TEXTS, tiny_llama

LEAVES = leaves()


def documented_options(name: str) -> dict[str, str]:
    """{spelling: its explanation}, from a command's section and those that it links to."""
    found = {}
    own = section("commands.md", f"clmerge {name}")
    shared = {anchor(h): h for h in re.findall(r"(?m)^## (Options .+)$", commands_md())}
    for heading in [
        *(shared[a] for a in re.findall(r"\(#(options-[\w-]+)\)", own)),
        f"clmerge {name}",
    ]:
        for cell, meaning in table(section("commands.md", heading), "option").items():
            for spelling in quoted(cell):
                found[spelling.split()[0]] = meaning
    return found


# commands.md


def test_every_command_has_a_section_and_a_line_in_the_overview() -> None:
    text = commands_md()
    assert re.findall(r"(?m)^## clmerge (.+)$", text) == list(COMMANDS)
    overview = [quoted(cell)[0].split()[1] for cell in table(text, "command")]
    assert list(dict.fromkeys(overview)) == list(COMMANDS)


def test_every_command_takes_the_options_that_stand_everywhere() -> None:
    for name in LEAVES:
        assert "(#options-everywhere)" in section("commands.md", f"clmerge {name}")


@pytest.mark.parametrize("name", LEAVES)
def test_the_options_of_a_command_are_those_of_its_help(name: str) -> None:
    assert documented_options(name).keys() == options_of(LEAVES[name])


@pytest.mark.parametrize("name", LEAVES)
def test_defaults_and_choices_are_named(name: str) -> None:
    documented = documented_options(name)
    for option in LEAVES[name].params:
        if not isinstance(option, click.Option) or option.is_flag:
            continue
        meaning = documented[option.opts[-1]]
        wanted = [str(option.default)] if option.show_default and option.default else []
        if isinstance(option.type, click.Choice):
            wanted += [str(choice) for choice in option.type.choices]
        assert not [word for word in wanted if word not in quoted(meaning)], option.opts


def test_the_exit_codes_are_those_of_the_program() -> None:
    documented = table(section("commands.md", "Exit codes"), "exit code")
    program = {0, ClmergeError.exit_code, OptionError.exit_code, LOSSY, DRIFT}
    program |= set(EXIT_CODES.values())
    program |= {Interrupted(number).exit_code for number in (signal.SIGINT, signal.SIGTERM)}
    assert {int(code) for code in documented} == program


def test_the_error_codes_are_those_of_the_program() -> None:
    documented = table(section("commands.md", "Exit codes"), "error code")
    classes = [
        value
        for _, value in inspect.getmembers(mergekit_cl.errors, inspect.isclass)
        if issubclass(value, ClmergeError)
    ]
    assert {quoted(code)[0] for code in documented} == {c.code for c in classes} | {"internal"}


def test_the_tree_of_errors_draws_every_class() -> None:
    drawn = set(re.findall(r"\b[A-Z]\w+(?:Error|Interrupted)\b|\bInterrupted\b", _tree()))
    defined = {name for name, _ in inspect.getmembers(mergekit_cl.errors, inspect.isclass)}
    assert drawn == defined


def _tree() -> str:
    return (mergekit_cl.errors.__doc__ or "").split("\n\n")[1]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which every command has run."""
    found = tmp_path_factory.mktemp("docs")
    for name, seed in (("a", 1), ("b", 2)):
        sidecar(checkpoint(found / name, seed), seed)
    tiny_llama(found / "llama", layers=1, tied=True)
    write_rows(found / "rows.jsonl", ({"text": text} for text in TEXTS[:2]))
    write_rows(found / "task.jsonl", ({"text": text} for text in TEXTS))
    (found / "config.toml").write_text(
        'model = "llama"\n[[task]]\nname = "a"\ndata = ["task.jsonl"]\nsteps = 1\n'
    )
    return found


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return place


@pytest.mark.parametrize(
    ("of", "line"),
    [
        ("a merge", "linear-merge a b -o one"),
        ("a merge", "fisher-merge a b -o two"),
        ("the plan of a merge", "linear-merge a b -o three --dry-run"),
        ("a sweep", "linear-merge a b --sweep 3"),
        ("the plan of a sweep", "fisher-merge a b --sweep 3 --dry-run"),
        ("`fisher`", "fisher llama --data rows.jsonl -o one.safetensors"),
        ("the plan of `fisher`", "fisher llama --data rows.jsonl --dry-run"),
        ("the plan of `train`", "train config.toml --dry-run"),
        ("`train`", "train config.toml"),
    ],
)
def test_json_documents_have_the_documented_keys(here: Path, of: str, line: str) -> None:
    cell = table(section("commands.md", "JSON on stdout"), "of")[of]
    keys = quoted(re.sub(r"\([^)]*\)", "", cell))
    assert sorted(keys) == sorted(clmerge(*line.split(), "--json").document)


@pytest.mark.parametrize("name", ["manifest.json", "divergence.json"])
def test_the_files_of_a_merge_have_the_documented_keys(here: Path, name: str) -> None:
    assert clmerge("linear-merge", "a", "b", "-o", "files").code == 0
    written = json.loads((here / "files" / "clmerge" / name).read_text())
    documented = table(section("commands.md", "Files"), f"`{name}`")
    assert sorted(key for cell in documented for key in quoted(cell)) == sorted(written)
    assert quoted(documented["`format`"]) == [json.dumps(written["format"])]
    if name == "divergence.json":
        parts = re.findall(r"\w+", quoted(documented["`verdict`"])[0])
        assert sorted(parts) == sorted(written["verdict"])


def test_a_sweep_has_the_documented_keys(here: Path) -> None:
    documented = table(section("commands.md", "Files"), "`sweep`")
    found = clmerge("fisher-merge", "a", "b", "--weights", "auto", "-o", "swept", "--json").document
    assert sorted(key for cell in documented for key in quoted(cell)) == sorted(found["sweep"])
    besides = table(section("commands.md", "JSON on stdout"), "of")
    plain = quoted(re.sub(r"\([^)]*\)", "", besides["a merge"]))
    more = quoted(besides["a merge with `--weights auto`, besides"])
    assert sorted([*plain, *more]) == sorted(found)


def test_the_parts_of_a_manifest_have_the_documented_keys(here: Path) -> None:
    assert clmerge("fisher-merge", "a", "b", "-o", "parts").code == 0
    made = json.loads((here / "parts/clmerge/manifest.json").read_text())
    documented = table(section("commands.md", "Files"), "`manifest.json`")
    sources = quoted(documented["`inputs`, `outputs`"])[0]
    written = [*made["inputs"], *made["outputs"]]
    keys = {key for source in written for key in (*source, *source["files"][0])}
    assert set(re.findall(r"\w+", sources)) == keys
    tensors = quoted(documented["`tensors`"])[0]
    entry = next(iter(made["tensors"].values()))
    assert set(re.findall(r"\w+", tensors)) == {"name", *entry}


# sidecar.md


@pytest.fixture(scope="module")
def said(place: Path) -> dict[str, Any]:
    """The metadata of a sidecar that the command wrote."""
    assert clmerge("fisher", place / "llama", "--data", place / "rows.jsonl").code == 0
    return said_by(place / "llama" / SIDECAR)


def _keys(text: str) -> dict[str, str]:
    return {key: meaning for cell, meaning in table(text, "key").items() for key in quoted(cell)}


def _types(text: str) -> dict[str, str]:
    return {key: cells[1] for cells in rows_of(text) if len(cells) == 3 for key in quoted(cells[0])}


def test_the_metadata_keys_of_a_real_sidecar_are_the_documented_ones(said: dict[str, Any]) -> None:
    whole, per_tensor = section("sidecar.md", "Metadata").split("Per tensor, in `tensors`:")
    assert _keys(whole).keys() == said.keys()
    for entry in said["tensors"].values():
        assert _keys(per_tensor).keys() == entry.keys()
    options = quoted(_keys(whole)["options"])
    assert sorted(options) == sorted(said["options"])


def test_the_required_keys_are_those_the_reader_asks_for() -> None:
    documented = _keys(section("sidecar.md", "Metadata"))
    required = {key for key, meaning in documented.items() if meaning.endswith("; required")}
    assert required == {"format", *REQUIRED}
    assert json.dumps(FORMAT) in documented["format"]


def test_the_documented_types_are_those_of_a_real_sidecar(said: dict[str, Any]) -> None:
    kinds: dict[str, tuple[type, ...]] = {
        "string": (str,),
        "integer": (int,),
        "object": (dict,),
        "object or null": (dict, type(None)),
        "number": (int, float),
        "number or null": (int, float, type(None)),
    }
    whole, per_tensor = section("sidecar.md", "Metadata").split("Per tensor, in `tensors`:")
    entries = [(said, _types(whole)), *((e, _types(per_tensor)) for e in said["tensors"].values())]
    for values, types in entries:
        for key, value in values.items():
            assert isinstance(value, kinds[types[key]]), (key, value)


def vector() -> dict[str, Any]:
    (block,) = code_blocks(section("sidecar.md", "Digests"))
    found: dict[str, Any] = json.loads(block)
    return found


def by_the_page(content: bytes) -> str:
    """The digest of a tensor as sidecar.md describes it."""
    pieces = [content[at : at + 16_777_216] for at in range(0, len(content), 16_777_216)]
    return blake3(b"".join(blake3(piece).digest() for piece in pieces)).hexdigest()


def test_the_test_vector_follows_from_the_page() -> None:
    given = vector()
    lines = []
    for name, tensor in given["tensors"].items():
        assert by_the_page(bytes.fromhex(tensor["bytes"])) == tensor["digest"]
        line = [name, tensor["dtype"], tensor["shape"], tensor["digest"]]
        lines.append(json.dumps(line, separators=(",", ":"), ensure_ascii=True))
    joined = "\n".join(sorted(lines)).encode()
    assert blake3(joined).hexdigest() == given["weights_digest"]
    assert by_the_page(bytes(2**24 + 1)) == given["digest_of_16777217_zero_bytes"]
    for row in given["rows"]:
        text = json.dumps(row["content"], sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        assert hashlib.blake2b(text.encode(), digest_size=16).hexdigest() == row["digest"]
    joined = "\n".join(sorted(row["digest"] for row in given["rows"])).encode()
    assert hashlib.blake2b(joined, digest_size=32).hexdigest() == given["data_digest"]


def test_the_program_agrees_with_the_test_vector(tmp_path: Path) -> None:
    from mergekit_cl.checkpoint import open_checkpoint
    from mergekit_cl.uptodate import checkpoint_digests

    given = vector()
    header, data = {}, b""
    for name, tensor in sorted(given["tensors"].items(), key=lambda item: -_width(item[1])):
        content = bytes.fromhex(tensor["bytes"])
        offsets = [len(data), len(data) + len(content)]
        header[name] = {**{k: tensor[k] for k in ("dtype", "shape")}, "data_offsets": offsets}
        data += content
    text = json.dumps(header).encode()
    path = tmp_path / "vector.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    with open_checkpoint(path) as opened:
        digests = checkpoint_digests(opened)
        entries = [(t.name, t.dtype, t.shape, digests[t.name]) for t in opened.tensors.values()]
    assert digests == {name: tensor["digest"] for name, tensor in given["tensors"].items()}
    assert weights_digest(entries) == given["weights_digest"]
    zeros = bytes(PIECE_BYTES + 1)
    pieces = [blake3(zeros[:PIECE_BYTES]).digest(), blake3(zeros[PIECE_BYTES:]).digest()]
    assert tensor_digest(pieces) == given["digest_of_16777217_zero_bytes"]
    assert [row_id(row["content"]) for row in given["rows"]] == [r["digest"] for r in given["rows"]]
    assert data_digest(row["digest"] for row in given["rows"]) == given["data_digest"]


def _width(tensor: dict[str, Any]) -> int:
    return torch.empty(0, dtype=torch_dtype(tensor["dtype"])).element_size()


# mathematics.md


def test_the_estimators_are_those_of_the_command() -> None:
    documented = table(section("mathematics.md", "Estimators"), "name")
    (option,) = (p for p in LEAVES["fisher"].params if p.name == "estimator")
    assert isinstance(option.type, click.Choice)
    assert {quoted(name)[0] for name in documented} == set(option.type.choices)


def test_the_metrics_are_those_of_the_report() -> None:
    documented = table(section("mathematics.md", "Divergence"), "metric")
    assert [quoted(name)[0] for name in documented] == list(METRICS)


def test_the_thresholds_are_those_of_the_verdict() -> None:
    text = section("mathematics.md", "Verdict").replace("\n", " ")
    assert f"`survival < {DEFAULT.model['survival']}`" in text
    assert f"`predicted_loss > {DEFAULT.model['predicted_loss']}` nats per token" in text


def test_every_source_is_listed_and_every_listed_one_is_cited() -> None:
    text = (DOCS / "mathematics.md").read_text()
    body, sources = text.split("## Sources")
    listed = re.findall(r"(?m)^- ((?:[\w ]+ and )?[\w ]+?(?: et al\.)?) (\d{4})\.", sources)
    assert len(listed) == sources.count("\n- ")
    for authors, year in listed:
        assert f"{authors} {year}" in re.sub(r"\s+", " ", body), authors
    cited = re.findall(r"(\w+)(?: et al\.)? ((?:19|20)\d\d)\b", body)
    last = {(authors.removesuffix(" et al.").split()[-1], year) for authors, year in listed}
    assert set(cited) <= last


# All pages


def test_the_index_names_every_page() -> None:
    linked = re.findall(r"\]\(([\w.]+)\)", (DOCS / "README.md").read_text())
    assert sorted(linked) == sorted(page.name for page in PAGES if page.name != "README.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        file, _, place = target.partition("#")
        there = page.parent / file if file else page
        assert there.exists(), target
        headings = re.findall(r"(?m)^#+ (.+)$", there.read_text())
        assert not place or place in {anchor(heading) for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.name)
def test_command_lines_in_code_blocks_parse(page: Path) -> None:
    for line in shown_in("\n".join(code_blocks(page.read_text()))):
        parse(line)


def test_commands_md_shows_a_line_of_every_command() -> None:
    for name in LEAVES:
        blocks = code_blocks(section("commands.md", f"clmerge {name}"))
        shown = shown_in("\n".join(blocks))
        assert any(line.startswith(f"clmerge {name} ") for line in shown)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_of_the_project_that_pages_name_exist(page: Path) -> None:
    for name in re.findall(
        r"`((?:fisher|mergekit_cl|tests|docs|examples)/[\w/.-]+\.\w+)`", page.read_text()
    ):
        assert (ROOT / name).exists(), name


def test_modules_that_point_to_a_page_point_to_one_that_exists() -> None:
    for package in ("mergekit_cl", "fisher"):
        folder = Path(import_module(package).__path__[0])
        for file in folder.rglob("*.py"):
            for name in re.findall(r"\bdocs/[\w-]+\.md\b", file.read_text()):
                assert (ROOT / name).exists(), f"{file}: {name}"
