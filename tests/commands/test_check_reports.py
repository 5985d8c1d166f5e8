"""JUnit, Markdown, annotations and the table: what they say, and names that try to be markup."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from markdown_it import MarkdownIt

from tests.commands.checkpoints import SHAPES, checkpoint, weights
from tests.commands.comparisons import check
from tests.commands.running import Result, clmerge

EMBED, LAYER0, LAYER1, NORM = SHAPES
HOSTILE = (
    "<script>alert(1)</script>.weight",
    "::error title=x::gotcha.weight",
    "two\nlines\r::stop-commands::x.weight",
    "##[error]old.weight",
    "[bold red]markup[/] [link=http://x].weight",
    "a|b`c``d|e.weight",
    "]]>&amp;\"'\x00\x1b[31m\ufffe.weight",
    "%0A::warning::percent.weight",
    "\u202egnp.weight",
    "@everyone #1 ![x](http://x) **b** .weight",
)


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """m and p, which differ in tensors of hostile names; a policy that all of them break."""
    monkeypatch.chdir(tmp_path)
    checkpoint(tmp_path / "m", {name: torch.full((4,), 2.0) for name in HOSTILE})
    checkpoint(tmp_path / "p", {name: torch.full((4,), 1.0) for name in HOSTILE})
    (tmp_path / "p.toml").write_text('[model]\nrel_l2 = 0.1\n[tensors."*"]\nrel_l2 = 0.1\n')
    return tmp_path


def reports(*line: str) -> Result:
    return clmerge("check", *line, "--junit", "j.xml", "--markdown", "m.md", "--annotations")


def suite() -> ElementTree.Element:
    found = ElementTree.parse("j.xml").getroot().find("testsuite")
    assert found is not None
    return found


def follows_the_schema(root: ElementTree.Element) -> None:
    """Elements, their order and the attributes that readers of JUnit files ask for."""
    assert root.tag == "testsuites"
    for one in root:
        assert one.tag == "testsuite"
        need = {"name", "tests", "failures", "errors", "skipped", "time", "timestamp", "hostname"}
        assert need <= set(one.keys())
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", one.attrib["timestamp"])
        tags = [child.tag for child in one]
        cases = tags.count("testcase")
        assert tags == ["properties", *["testcase"] * cases, "system-out", "system-err"]
        outcomes: Counter[str] = Counter()
        for case in one.iter("testcase"):
            assert {"name", "classname", "time"} <= set(case.keys())
            assert len(case) <= 1
            for inner in case:
                outcomes[inner.tag] += 1
                assert inner.tag != "failure" or {"message", "type"} <= set(inner.keys())
        assert int(one.attrib["tests"]) == cases
        assert int(one.attrib["failures"]) == outcomes["failure"]
        assert int(one.attrib["skipped"]) == outcomes["skipped"]
        assert set(outcomes) <= {"failure", "skipped"}


def test_junit_has_a_case_per_layer_and_per_threshold_and_parent(place: Path) -> None:
    (place / "p.toml").write_text('[model]\nrel_l2 = 0.1\nmax_abs = 99\n[tensors."*"]\ncosine=-1\n')
    assert clmerge("linear-merge", "a", "b", "-q").code == 0
    assert reports("merged", "a", "b", "--policy", "p.toml").code == 10
    follows_the_schema(ElementTree.parse("j.xml").getroot())
    cases = {(c.attrib["classname"], c.attrib["name"]): c for c in suite().iter("testcase")}
    layers = {"model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm"}
    assert {name for group, name in cases if group == "clmerge.layers"} == layers
    models = {name for group, name in cases if group == "clmerge.model"}
    assert models == {f"{m} against {p}" for m in ("rel_l2", "max_abs") for p in ("a", "b")}
    failed = {name for (_, name), case in cases.items() if case.find("failure") is not None}
    assert failed == {"rel_l2 against a", "rel_l2 against b"}


def test_junit_says_what_is_not_known_and_which_layer_a_tensor_fails_in(place: Path) -> None:
    (place / "p.toml").write_text(f'[model]\nsurvival = 0.5\n[tensors."{LAYER1}"]\nrel_l2 = 0\n')
    assert reports("a", "b", "--policy", "p.toml").code == 10
    cases = {c.attrib["name"]: c for c in suite().iter("testcase")}
    assert cases["survival against b"].find("skipped") is not None
    failure = cases["model.layers.1"].find("failure")
    assert failure is not None
    assert failure.attrib["message"].startswith(f"{LAYER1}: rel_l2 ")
    assert cases["model.layers.0"].find("failure") is None


def test_hostile_names_are_text_in_junit(hostile: Path) -> None:
    assert reports("m", "p", "--policy", "p.toml").code == 10
    follows_the_schema(ElementTree.parse("j.xml").getroot())
    names = [c.attrib["name"] for c in suite().iter("testcase")]
    assert len(names) == 1 + len(HOSTILE)
    assert "<script>alert(1)</script>" in names
    assert "two\\nlines\\r::stop-commands::x" in names


def test_hostile_names_are_code_in_markdown(hostile: Path) -> None:
    assert reports("m", "p", "--policy", "p.toml").code == 10
    text = Path("m.md").read_text()
    html = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(text)
    assert "<script>" not in html
    assert html.count("<tr>") == 1 + len(HOSTILE)
    row_cells = {row.count("<td") for row in re.findall(r"(?s)<tr>.*?</tr>", html)[1:]}
    assert row_cells == {3}
    outside = re.sub(r"(?s)<code>.*?</code>", "", html)
    for markup in ("<a ", "<img", "<strong>b", "@everyone", "gotcha", "alert"):
        assert markup not in outside
    assert "<code>a\\x7cb`c``d\\x7ce</code>" in html


def test_hostile_names_give_no_command_to_a_workflow(hostile: Path) -> None:
    result = reports("m", "p", "--policy", "p.toml")
    lines = [*result.out.splitlines(), *result.err.splitlines()]
    commands = [line for line in lines if line.lstrip().startswith("::")]
    assert len(commands) == 10  # as many as GitHub shows
    for line in commands:
        form = re.fullmatch(r"::error title=([^:,\r\n]*)::(.*)", line)
        assert form, line
        assert form[1].startswith("clmerge check")
        assert not re.search(r"%(?!25|0A|0D|3A|2C)", form[0])
    assert "%250A" in "".join(commands)  # a percent sign is itself
    assert not any("##[" in line for line in lines)
    assert "\x1b" not in result.out + result.err
    assert "\u202e" not in result.out + result.err


def test_a_merge_of_hostile_names_gives_no_command_to_a_workflow(hostile: Path) -> None:
    line = ("linear-merge", "m", "p", "-o", "out", "--policy", "p.toml")
    lines = clmerge(*line).err.splitlines()
    assert sum("gotcha" in one for one in lines) > 1  # among the layers and among the reasons
    assert not any(one.lstrip().startswith("::") or "##[" in one for one in lines)
    assert not any("\x1b" in one or "\u202e" in one for one in lines)


def test_an_error_about_hostile_names_gives_no_command_to_a_workflow(hostile: Path) -> None:
    checkpoint(hostile / "few", {HOSTILE[0]: torch.ones(4)})
    result = clmerge("linear-merge", "m", "few", "-o", "out")
    assert result.code == 1
    assert "stop-commands" in result.err
    for line in result.err.splitlines():
        assert not line.lstrip().startswith("::")
        assert "##[" not in line


def test_hostile_names_are_no_markup_on_a_terminal(hostile: Path) -> None:
    told = clmerge("diff", "m", "p", "--top", "20").out
    assert "[bold red]markup[/] [link=http://x].weight" in told
    assert "two\\nlines\\r::stop-commands::x.weight" in told
    assert "\\x00\\x1b[31m\\ufffe.weight" in told


def test_annotations_are_for_workflows_or_on_request(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    assert "::" not in clmerge("check", "a", "b").err
    (notice,) = _commands(clmerge("check", "a", "b", "--annotations"))
    assert notice == "::notice title=clmerge check%3A ok::a against b"
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert _commands(clmerge("check", "a", "b"))
    assert not _commands(clmerge("check", "a", "b", "--no-annotations"))


def _commands(result: Result) -> list[str]:
    assert "::" not in result.out
    return [line for line in result.err.splitlines() if line.startswith("::")]


def test_markdown_says_verdict_reasons_worst_layers_and_what_to_do(place: Path) -> None:
    near = {name: t.bfloat16() for name, t in weights(1).items()}
    checkpoint(place / "x", near)
    checkpoint(place / "y", {name: t.float() * (1 + 2e-4) for name, t in near.items()})
    assert clmerge("linear-merge", "x", "y", "--dtype", "bfloat16", "-q").code == 0
    assert reports("merged", "x", "y", "--top", "2").code == 10
    text = Path("m.md").read_text()
    assert text.startswith("### clmerge check: ❌ lossy\n\n`merged` against `x`, `y`\n\n- `")
    assert text.count("| `model.") == 2
    assert "What to do:\n\n- `write float32: --dtype float32`" in text
    assert reports("a", "a").code == 0
    assert Path("m.md").read_text().startswith("### clmerge check: ✅ ok\n")


def test_a_check_in_json_says_what_the_reports_say(place: Path) -> None:
    (place / "p.toml").write_text("[model]\nrel_l2 = 0.1\n")
    document = check("a", "b", "--policy", "p.toml", code=10)
    (finding,) = document["findings"]
    assert finding["metric"] == "rel_l2"
    assert finding["threshold"] == 0.1
    assert reports("a", "b", "--policy", "p.toml").code == 10
    (failure,) = suite().iter("failure")
    assert failure.attrib["message"] == document["verdict"]["reasons"][0]
