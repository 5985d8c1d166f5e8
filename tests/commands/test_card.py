"""The model card of a merge: for the hub, for people, beside what the first input's said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from tests.commands.checkpoints import SHAPES, checkpoint, weights
from tests.commands.running import clmerge

OWN = "---\nlicense: mit\ntags:\n- own\n---\n# A\n\nWhat <b>it</b> is for.\n"
HOSTILE = "<!-- /clmerge --> </script> `a` | ![x](http://x)"


def text(folder: str = "merged") -> str:
    return Path(folder, "README.md").read_text()


def merge(*line: str) -> None:
    assert clmerge(*line).code == 0


def test_it_says_inputs_digests_verdict_worst_layers_and_the_command(place: Path) -> None:
    (place / "a/README.md").write_text(OWN)
    merge("fisher-merge", "a", "b", "--weights", "3,1")
    made = json.loads(Path("merged/clmerge/manifest.json").read_text())
    card = ModelCard(text())
    assert card.data.license == "mit"
    assert card.data.tags == ["own", "merge", "clmerge"]
    for one in [*made["inputs"], *made["outputs"]]:
        assert f"`{one['weights_digest']}`" in card.text
    assert "Verdict: **ok**" in card.text
    divergence = json.loads(Path("merged/clmerge/divergence.json").read_text())
    for row in divergence["verdict"]["worst"]:
        assert f"| `{row['layer']}` | `{row['parent']}` | {row['rel_l2']:.3g} |" in card.text
    assert "```sh\nclmerge fisher-merge a b --weights 3,1\n```" in card.text
    assert card.text.endswith("\n# A\n\nWhat <b>it</b> is for.\n")


def test_the_same_merge_gives_the_same_card(place: Path) -> None:
    merge("linear-merge", "a", "b", "-o", "one")
    merge("linear-merge", "a", "b", "-o", "two", "--threads", "1")
    assert text("one") == text("two")


def test_a_merge_of_a_merge_has_one_section(place: Path) -> None:
    (place / "a/README.md").write_text(OWN)
    merge("linear-merge", "a", "b", "-o", "one")
    merge("linear-merge", "one", "b", "-o", "two")
    found = text("two")
    assert found.count("<!-- clmerge -->") == found.count("<!-- /clmerge -->") == 1
    assert found.count("# A\n") == 1
    assert "clmerge linear-merge one b\n" in found
    assert ModelCard(found).data.tags == ["own", "merge", "clmerge"]


def test_an_update_in_place_renews_its_section(place: Path) -> None:
    (place / "a/README.md").write_text(OWN)
    for _ in range(2):
        merge("ema-merge", "a", "b", "--decay", "0.5", "--in-place")
    assert text("a").count("<!-- clmerge -->") == 1
    assert text("a").endswith("# A\n\nWhat <b>it</b> is for.\n")


def test_without_a_report_it_has_no_verdict(place: Path) -> None:
    merge("linear-merge", "a", "b", "--no-report")
    assert "Verdict" not in text()
    assert "clmerge linear-merge a b" in text()


def test_a_single_file_has_none(place: Path) -> None:
    merge("linear-merge", "a", "b", "-o", "x.safetensors")
    assert not Path("README.md").exists()


def test_other_licenses_are_told(place: Path) -> None:
    (place / "a/README.md").write_text(OWN)
    (place / "b/README.md").write_text("---\nlicense: gpl-3.0\n---\n")
    merge("linear-merge", "a", "b")
    assert "(`a`: `mit`, `b`: `gpl-3.0`)" in text()
    assert ModelCard(text()).data.license == "mit"


@pytest.mark.parametrize(
    "content", [b"---\na: [\n---\n# Kept\n", b"caf\xe9 \xff\n", b"\xef\xbb\xbf# Kept\r\n"]
)
def test_a_card_that_cannot_be_read_is_kept_as_text(place: Path, content: bytes) -> None:
    (place / "a/README.md").write_bytes(content)
    merge("linear-merge", "a", "b")
    assert Path("merged/README.md").read_bytes().endswith(b"<!-- /clmerge -->\n\n" + content)


def test_names_from_files_are_no_markup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tensors = {HOSTILE: torch.ones(4), **weights(1)}
    checkpoint(tmp_path / "a", tensors)
    checkpoint(tmp_path / "b", {name: tensor * 3 for name, tensor in tensors.items()})
    merge("linear-merge", "a", "b")
    found = text()
    assert found.count("<!-- /clmerge -->") == 1
    rendered = MarkdownIt("commonmark").enable("table").render(ModelCard(found).text)
    assert "<img" not in rendered
    assert "<script" not in rendered
    assert "</script" not in rendered
    assert SHAPES.keys() < tensors.keys()
