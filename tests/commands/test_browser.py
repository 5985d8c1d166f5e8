"""The page in headless Chromium: drawn without complaint or request, switched, searched, walked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from mergekit_cl.decide.policy import DEFAULT
from mergekit_cl.divergence.summary import Parent, summarise
from mergekit_cl.divergence.sums import Sums
from mergekit_cl.report.html.content import merge_content
from mergekit_cl.report.html.library import needed_library
from mergekit_cl.report.html.page import render_page
from tests.browsers import headless_browser
from tests.commands.checkpoints import checkpoint, sidecar, weights
from tests.commands.running import clmerge

if TYPE_CHECKING:
    from playwright.sync_api import Browser, CDPSession, Page

pytestmark = pytest.mark.usefixtures("whole_pages")

OPENS_WITHIN = 3.0
LAYERS, EXPERTS, KINDS = 50, 200, ("up_proj", "down_proj")
HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>.weight",
    "<b>bold</b> <a href='javascript:alert(1)'>a</a> &lt;i&gt; %{x}.weight",
    "\u2028\u202egnp.weight",
)


@dataclass
class Opened:
    """A page with everything it complained of and asked for."""

    page: Page
    session: CDPSession
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def text(self, selector: str) -> str:
        return self.page.inner_text(selector)

    def processor_seconds(self) -> float:
        """What the page's thread has computed: the time to open, but for what others took."""
        told = self.session.send("Performance.getMetrics")["metrics"]
        return float(next(one["value"] for one in told if one["name"] == "TaskDuration"))

    def drawn(self) -> list[Any]:
        """What plotly shows of the first heat map."""
        found: list[Any] = self.page.evaluate(
            "document.querySelector('.heatmap').data[0].z.map((row) => Array.from(row))"
        )
        return found


def look(browser: Browser, path: Path, width: int = 1200, scheme: Any = "light") -> Opened:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    opened = Opened(page, page.context.new_cdp_session(page))
    opened.session.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.on("console", lambda message: opened.complaints.append(message.text))
    page.on("pageerror", lambda error: opened.complaints.append(str(error)))
    page.on("dialog", lambda dialog: opened.complaints.append(dialog.message) or dialog.dismiss())
    page.on("request", lambda request: opened.requests.append(request.url))
    page.goto(path.absolute().as_uri())
    page.wait_for_selector("html[data-ready]", state="attached", timeout=30_000)
    return opened


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with headless_browser() as found:
        yield found


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Fisher merge into bfloat16; its folder."""
    place = tmp_path_factory.mktemp("page")
    for name, seed in (("a", 1), ("b", 2)):
        sidecar(checkpoint(place / name, weights(seed, torch.bfloat16)), seed)
    assert clmerge("fisher-merge", place / "a", place / "b", "-o", place / "m").code == 0
    return place / "m"


@pytest.fixture
def opened(browser: Browser, merged: Path) -> Opened:
    return look(browser, merged / "clmerge/report.html")


def test_it_is_drawn_without_a_complaint_or_a_request(opened: Opened, merged: Path) -> None:
    assert opened.complaints == []
    assert opened.requests == [(merged / "clmerge/report.html").absolute().as_uri()]
    for selector in (".heatmap", "#histogram"):
        assert opened.page.query_selector(f"{selector} .main-svg") is not None
    assert opened.text("#verdict") == "ok"


def test_the_pages_policy_lets_no_script_and_no_fetch_through(opened: Opened) -> None:
    opened.page.evaluate(
        """() => {
          const made = document.createElement("script");
          made.textContent = "document.title = 'owned'";
          document.body.append(made);
        }"""
    )
    blocked = "fetch('https://example.org').then(() => 'sent', (error) => 'blocked')"
    assert opened.page.evaluate(blocked) == "blocked"
    assert opened.page.title() != "owned"
    assert any("Content Security Policy" in said for said in opened.complaints)


def test_it_shows_the_numbers_of_divergence_json(opened: Opened, merged: Path) -> None:
    told = json.loads((merged / "clmerge/divergence.json").read_text())
    parent = told["parents"][0]
    layers = {r["layer"]: r["rel_l2"] for r in told["layers"] if r["parent"] == parent}
    names = opened.page.evaluate(
        "JSON.parse(document.getElementById('data').textContent).layers.names"
    )
    firsts = [row[0] for row in opened.drawn()]
    expected = [np.log10(layers[name]) for name in names]
    assert np.allclose(firsts, expected, rtol=1e-4)


def test_switching_the_metric_changes_the_picture(opened: Opened) -> None:
    before, picture = opened.drawn(), opened.page.locator("#heatmaps").screenshot()
    opened.page.select_option("#metric", "survival")
    assert opened.drawn() != before
    assert opened.page.locator("#heatmaps").screenshot() != picture
    assert "survival" in opened.text("#meaning")


def test_searching_filters_the_table(opened: Opened) -> None:
    rows = opened.page.locator("#rows tbody tr")
    everything = rows.count()
    opened.page.fill("#search", "LAYERS.1 up")
    assert 0 < rows.count() < everything
    assert all("layers.1.mlp.up_proj" in text for text in rows.all_inner_texts())
    opened.page.fill("#search", "nothing of that name")
    assert rows.count() == 0
    assert opened.text("#count").startswith("0 of ")


def test_a_heading_sorts_the_table_both_ways(opened: Opened) -> None:
    def column() -> list[float]:
        cells = opened.page.locator("#rows tbody tr td:nth-child(3)")
        return [float(text) for text in cells.all_inner_texts()]

    assert column() == sorted(column(), reverse=True)
    opened.page.click("#rows th button:text-is('rel_l2')")
    assert column() == sorted(column())


def test_the_heat_map_is_walked_by_keys(opened: Opened) -> None:
    opened.page.focus(".heatmap")
    opened.page.keyboard.press("ArrowDown")
    first = opened.text("#cell")
    opened.page.keyboard.press("ArrowDown")
    assert opened.text("#cell") != first
    assert "whole layer: rel_l2" in first
    opened.page.keyboard.press("Enter")
    assert opened.page.input_value("#search") != ""
    assert opened.page.locator("#rows tbody tr").count() >= 1


def test_everything_is_reached_by_the_tab_key(opened: Opened) -> None:
    reached = set()
    for _ in range(40):
        opened.page.keyboard.press("Tab")
        reached.add(
            opened.page.evaluate("document.activeElement.id || document.activeElement.className")
        )
    assert {"theme", "metric", "logarithmic", "heatmap", "search"} <= {
        word for one in reached for word in one.split()
    }


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_follows_the_system_until_the_button_says_otherwise(
    browser: Browser, merged: Path, scheme: str
) -> None:
    opened = look(browser, merged / "clmerge/report.html", scheme=scheme)

    def brightness() -> float:
        said = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
        return float(np.mean([int(part) for part in re.findall(r"\d+", said)[:3]]))

    assert (brightness() > 128) == (scheme == "light")
    opened.page.click("#theme")
    assert (brightness() > 128) == (scheme == "dark")
    letters = opened.page.evaluate("document.querySelector('#histogram').layout.font.color")
    assert (int(letters[1:3], 16) > 128) == (scheme == "light")


@pytest.mark.parametrize("width", [360, 3840])
def test_it_fits_a_phone_and_a_wall(browser: Browser, merged: Path, width: int) -> None:
    opened = look(browser, merged / "clmerge/report.html", width=width)
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    size = opened.page.evaluate("parseFloat(getComputedStyle(document.body).fontSize)")
    assert size >= (15 if width == 360 else 24)
    assert opened.complaints == []


def test_hostile_names_are_text(browser: Browser, tmp_path: Path) -> None:
    tensors = {name: torch.ones(4) for name in HOSTILE}
    checkpoint(tmp_path / "a", tensors)
    checkpoint(tmp_path / "b", {name: tensor * 3 for name, tensor in tensors.items()})
    line = ("linear-merge", tmp_path / "a", tmp_path / "b", "-o", tmp_path / "m")
    assert clmerge(*line).code == 0
    opened = look(browser, tmp_path / "m/clmerge/report.html")
    assert opened.complaints == []
    assert len(opened.requests) == 1
    shown = opened.text("#rows")
    for name in (*HOSTILE[:3], "\\u2028\\u202egnp.weight"):
        assert name in shown
    assert opened.page.locator("img, a:not(.skip), main b, main i").count() == 0
    assert opened.page.locator(".heatmap a").count() == 0
    labels = " ".join(opened.page.locator(".heatmap .ytick").all_text_contents())
    assert "</a> &lt;i&gt; %{x}" in labels


def test_a_check_shows_what_failed(browser: Browser, tmp_path: Path) -> None:
    for name, seed in (("m", 1), ("p", 2)):
        checkpoint(tmp_path / name, seed)
    policy = tmp_path / "p.toml"
    policy.write_text('[model]\nrel_l2 = 0.001\n[tensors."*norm*"]\nmax_abs = 0.001\n')
    line = (
        "check",
        tmp_path / "m",
        tmp_path / "p",
        "--policy",
        policy,
        "--html",
        tmp_path / "c.html",
    )
    assert clmerge(*line).code == 10
    opened = look(browser, tmp_path / "c.html")
    assert opened.text("#verdict") == "lossy"
    assert "tensor model.norm.weight" in opened.text("#findings")
    assert "tensors *norm*: max_abs 0.001" in opened.text("#patterns")
    assert opened.page.locator("#thresholds .broken").count() == 1
    assert opened.complaints == []


def test_a_diff_has_no_verdict(browser: Browser, tmp_path: Path) -> None:
    for name, seed in (("m", 1), ("p", 2)):
        checkpoint(tmp_path / name, seed)
    assert clmerge("diff", tmp_path / "m", tmp_path / "p", "--html", tmp_path / "d.html").code == 0
    opened = look(browser, tmp_path / "d.html")
    assert not opened.page.is_visible("#verdict")
    assert not opened.page.is_visible("#policy")
    assert opened.complaints == []


def test_weights_that_a_sweep_chose_show_its_curve(browser: Browser, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        sidecar(checkpoint(tmp_path / name, seed), seed)
    line = ("fisher-merge", tmp_path / "a", tmp_path / "b", "--weights", "auto", "--sweep", "5")
    assert clmerge(*line, "-o", tmp_path / "m").code == 0
    told = json.loads((tmp_path / "m/clmerge/divergence.json").read_text())["sweep"]
    opened = look(browser, tmp_path / "m/clmerge/report.html")
    drawn = opened.page.evaluate("document.getElementById('curve').data.map((one) => one.y)")
    expected = [sorted(values) for values in told["predicted"].values()]
    assert np.allclose([sorted(values) for values in drawn], expected, rtol=1e-4)
    assert told["measure"] in opened.text("#sweep-note")
    assert opened.complaints == []


def many_tensors() -> str:
    """A page of 20,000 tensors against two parents."""
    draw = np.random.default_rng(0)

    def sums() -> Sums:
        update = float(10 ** draw.uniform(-6, -2))
        return Sums(
            *(1000, 1.0, 1.0, update, 0.1, 500, update, update * float(draw.uniform(0.2, 1))),
            rounding_square=update / 10,
        )

    names = [
        f"model.layers.{layer}.mlp.experts.{expert}.{kind}.weight"
        for layer in range(LAYERS)
        for expert in range(EXPERTS)
        for kind in KINDS
    ]
    found = summarise({n: (sums(), sums()) for n in names}, [Parent("a"), Parent("b")])
    options = {"weights": [0.5, 0.5], "normalize": True, "dtype": None, "vocab": "error"}
    options |= {"include": [], "exclude": [], "carry": False}
    options |= {"allow_nonfinite": False, "allow_stale_fisher": False}
    made = {"command": "linear-merge", "options": options, "inputs": [], "versions": {}}
    made["outputs"] = [{"weights_digest": "0"}]
    made["tensors"] = {n: {"dtype": "BF16", "shape": [64, 64]} for n in names}
    content = merge_content(found, made, DEFAULT, carried=False)
    return render_page(content, needed_library())


def test_twenty_thousand_tensors_open_and_are_searched(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(many_tensors())
    opened = look(browser, tmp_path / "page.html")
    assert opened.processor_seconds() < OPENS_WITHIN
    assert opened.text("#count") == "40000 of 40000 rows"
    opened.page.fill("#search", "layers.7. experts.13. up")
    assert opened.text("#count") == "2 of 40000 rows"
    assert opened.complaints == []
