"""The page as a file: beside every merge, by --html, without plotly (looks: test_browser.py)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.commands.running import clmerge

pytestmark = pytest.mark.usefixtures("whole_pages")

PAGE = Path("merged/clmerge/report.html")


def without_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    from mergekit_cl.report.html import library

    monkeypatch.setattr(library, "find_spec", lambda name: None)


def test_the_same_merge_gives_the_same_page(place: Path) -> None:
    for name in ("one", "two"):
        assert clmerge("fisher-merge", "a", "b", "-o", name).code == 0
    pages = [Path(name, "clmerge/report.html").read_bytes() for name in ("one", "two")]
    assert pages[0] == pages[1]


def test_a_page_names_nothing_to_fetch(place: Path) -> None:
    assert clmerge("linear-merge", "a", "b").code == 0
    text = PAGE.read_text()
    own = re.sub(r"(?s)<script>.*?</script>", "", text)  # plotly's source holds addresses
    assert not re.findall(r"(?:src|href)=\"(?!#)|url\(|@import|\bimport\(", own)
    assert "default-src 'none'" in text


def test_without_plotly_a_merge_says_so_in_a_line_and_goes_on(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_plotly(monkeypatch)
    result = clmerge("linear-merge", "a", "b")
    assert result.code == 0
    assert not PAGE.exists()
    (line,) = [line for line in result.err.splitlines() if "report.html" in line]
    assert line.endswith("(pip install plotly)")


def test_without_plotly_html_is_refused_before_anything_is_read(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_plotly(monkeypatch)
    result = clmerge("diff", "a", "no-such-model", "--html", "x.html")
    assert result.code == 1
    assert "plotly, which is not installed" in result.err
    assert "try: pip install plotly" in result.err
    assert not Path("x.html").exists()


@pytest.mark.parametrize("command", ["diff", "check"])
def test_a_place_that_cannot_be_written_is_named(place: Path, command: str) -> None:
    result = clmerge(command, "a", "b", "--html", "no/such/x.html")
    assert result.code == 1
    assert "--html no/such/x.html" in result.err


def test_a_lossy_check_writes_its_page_and_still_fails(place: Path) -> None:
    Path("p.toml").write_text("[model]\nrel_l2 = 0.001\n")
    assert clmerge("check", "a", "b", "--policy", "p.toml", "--html", "x.html").code == 10
    assert "rel_l2" in Path("x.html").read_text()
