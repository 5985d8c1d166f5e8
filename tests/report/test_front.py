"""The YAML of a model card: what is kept, what is new, what cannot be read."""

from __future__ import annotations

import pytest
import yaml
from huggingface_hub import ModelCard

from mergekit_cl.report.card.front import front_text, merged_front, split_card


def merged(*inputs: tuple[str, dict[str, object]]) -> dict[str, object]:
    return merged_front([(path, dict(said)) for path, said in inputs])


def test_a_card_is_split_as_the_hub_splits_it() -> None:
    text = "---\nlicense: mit\ntags:\n- x\n---\n# Title\n\n---\nmore\n"
    front, body = split_card(text)
    card = ModelCard(text)
    assert front == {"license": "mit", "tags": ["x"]}
    assert front["license"] == card.data.license
    assert body == card.text


@pytest.mark.parametrize(
    "text",
    ["# no front\n", "", "---\n[1, 2]\n---\nx", "---\na: [\n---\nx", "---\na: 2024-99-99\n---\n"],
)
def test_a_card_whose_yaml_says_nothing_is_all_text(text: str) -> None:
    assert split_card(text) == ({}, text)


def test_an_empty_block_is_taken_off() -> None:
    assert split_card("---\n---\nbody\n") == ({}, "body\n")


def test_the_first_inputs_metadata_stays_and_its_results_do_not() -> None:
    first = {
        "license": "apache-2.0",
        "language": ["en"],
        "tags": ["x", "merge"],
        "model-index": [{"name": "n"}],
    }
    found = merged(("a", first), ("b", {"license": "mit", "tags": ["y"]}))
    assert found == {
        "license": "apache-2.0",
        "language": ["en"],
        "tags": ["x", "merge", "clmerge"],
    }


def test_base_models_are_names_of_the_hub() -> None:
    local = {"base_model": ["org/base", "../secret", 3], "base_model_relation": "finetune"}
    found = merged(("hf://org/a@main", {"base_model": "org/older"}), ("/models/b", local))
    assert found["base_model"] == ["org/a", "org/base"]
    assert found["base_model_relation"] == "merge"


def test_paths_are_no_base_models() -> None:
    assert merged(("models/a", {"base_model": "./x"}), ("b", {})) == {"tags": ["merge", "clmerge"]}


def test_what_is_written_reads_back() -> None:
    said = {"license": "mit", "tags": ["a: b", "---", "ü"], "x": {"y": None}}
    front, body = split_card(front_text(said) + "# body\n")
    assert front == said
    assert body == "# body\n"
    assert yaml.safe_load(front_text(said).strip("-\n")) == said
