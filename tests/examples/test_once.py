from pathlib import Path

import pytest

from examples.once import digest, once


class Baker:
    """Counts how often it was asked."""

    def __init__(self, text: str = "bread") -> None:
        self.text, self.times = text, 0

    def __call__(self, out: Path) -> None:
        self.times += 1
        out.mkdir()
        (out / "loaf").write_text(self.text)


def test_what_the_same_recipe_has_made_is_not_made_again(tmp_path: Path) -> None:
    baker = Baker()
    assert once(tmp_path / "a", {"flour": 1}, baker)
    assert not once(tmp_path / "a", {"flour": 1}, baker)
    assert baker.times == 1


def test_another_recipe_replaces_it_whole(tmp_path: Path) -> None:
    once(tmp_path / "a", {"flour": 1}, Baker())
    (tmp_path / "a" / "crumb").write_text("")
    assert once(tmp_path / "a", {"flour": 2}, Baker("cake"))
    assert {p.name: p.read_text() for p in (tmp_path / "a").iterdir()} == {"loaf": "cake"}


def test_what_it_did_not_make_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine").write_text("keep")
    with pytest.raises(SystemExit, match="not made by this example"):
        once(tmp_path / "a", {}, Baker())
    assert (tmp_path / "a" / "mine").read_text() == "keep"


def test_a_run_that_fails_half_way_leaves_nothing_and_can_be_repeated(tmp_path: Path) -> None:
    def burn(out: Path) -> None:
        out.mkdir()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        once(tmp_path / "a", {}, burn)
    assert list(tmp_path.iterdir()) == []
    assert once(tmp_path / "a", {}, Baker())


def test_the_digest_of_a_model_folder_is_that_of_its_weights(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_text("{}")
    assert digest(tmp_path) == digest(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").write_bytes(b"others")
    assert digest(tmp_path) != digest(tmp_path / "config.json")
