"""From rows to the batches an estimator takes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from fisher.batch import IGNORE, UNKNOWN
from mergekit_cl.errors import DataError, InputError
from mergekit_cl.training.encode import Encoded, auto_batch_size, encode
from mergekit_cl.training.labels import class_index, class_names
from mergekit_cl.training.rows import Kind, Row, make_row
from tests.tiny_models import TEXTS, VOCAB_SIZE, tiny_tokenizer

CONFIG: dict[str, Any] = {"vocab_size": VOCAB_SIZE, "pad_token_id": 0}
CLASSES = {**CONFIG, "id2label": {"0": "bad", "1": "good"}, "label2id": {"bad": 0, "good": 1}}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def row(kind: Kind = "text", **content: Any) -> Row:
    return make_row(kind, content, "d.jsonl:1")


TEXT_ROWS = [row(text=text) for text in TEXTS]


def language(tokenizer: Any, rows: list[Row], max_length: int = 64) -> Encoded:
    return encode(rows, tokenizer, task="causal-lm", config=CONFIG, max_length=max_length)


def classes(tokenizer: Any, rows: list[Row], max_length: int = 64) -> Encoded:
    return encode(rows, tokenizer, task="classifier", config=CLASSES, max_length=max_length)


def test_the_label_of_a_position_is_the_token_that_follows_it(tokenizer: Any) -> None:
    (batch,) = language(tokenizer, TEXT_ROWS).batches(len(TEXT_ROWS))
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    for index in range(len(batch)):
        length = int(mask[index].sum())
        assert batch.labels[index, : length - 1].tolist() == ids[index, 1:length].tolist()
        assert batch.labels[index, length - 1 :].tolist() == [IGNORE] * (ids.shape[1] - length + 1)
    assert batch.tokens == int(mask.sum()) - len(batch)


def test_batches_are_padded_on_the_right_with_the_padding_token(tokenizer: Any) -> None:
    rows = [row(text="the cat sat"), row(text="a dog")]
    (batch,) = language(tokenizer, rows).batches(2)
    assert batch.inputs["input_ids"].tolist() == [[4, 6, 10], [5, 7, 0]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch.labels.tolist() == [[6, 10, IGNORE], [7, IGNORE, IGNORE]]
    assert batch.row_ids == (rows[0].id, rows[1].id)


def test_the_order_of_batches_depends_on_the_rows_alone(tokenizer: Any) -> None:
    shuffled = TEXT_ROWS[:]
    random.Random(0).shuffle(shuffled)
    first = list(language(tokenizer, TEXT_ROWS).batches(3))
    second = list(language(tokenizer, shuffled).batches(3))
    assert [batch.row_ids for batch in first] == [batch.row_ids for batch in second]
    assert [len(batch) for batch in first] == [3, 3, 2]
    widths = [batch.labels.shape[1] for batch in first]
    assert widths == sorted(widths, reverse=True)


def test_batches_can_be_taken_up_in_the_middle(tokenizer: Any) -> None:
    encoded = language(tokenizer, TEXT_ROWS)
    rest = list(encoded.batches(3, start=1))
    for expected, actual in zip(list(encoded.batches(3))[1:], rest, strict=True):
        assert expected.row_ids == actual.row_ids
        assert torch.equal(expected.labels, actual.labels)


def test_long_rows_are_cut_and_counted(tokenizer: Any) -> None:
    encoded = language(tokenizer, TEXT_ROWS, max_length=8)
    assert encoded.longest == 8
    assert encoded.truncated == sum(len(text.split()) > 8 for text in TEXTS) > 0
    assert len(encoded.rows) == len(TEXT_ROWS)
    assert all(row.labels[-1] == IGNORE for row in encoded.rows)


def test_the_models_own_limit_goes_before_a_larger_one(tokenizer: Any) -> None:
    config = {**CONFIG, "max_position_embeddings": 5}
    encoded = encode(TEXT_ROWS, tokenizer, task="causal-lm", config=config, max_length=64)
    assert (encoded.max_length, encoded.longest) == (5, 5)


def test_rows_without_a_token_to_predict_are_dropped_and_counted(tokenizer: Any) -> None:
    rows = [row(text=""), row(text="cat"), row(text="the cat")]
    encoded = language(tokenizer, rows)
    assert encoded.dropped == 2
    assert [r.id for r in encoded.rows] == [rows[2].id]


def test_a_completion_that_the_cut_leaves_nothing_of_is_dropped(tokenizer: Any) -> None:
    rows = [row("completion", prompt="one two three four", completion=" five"), TEXT_ROWS[0]]
    encoded = language(tokenizer, rows, max_length=4)
    assert (encoded.truncated, encoded.dropped, len(encoded.rows)) == (2, 1, 1)


def test_a_prompt_carries_no_loss(tokenizer: Any) -> None:
    rows = [row("completion", prompt="what is it ?", completion=" a cat")]
    (batch,) = language(tokenizer, rows).batches(1)
    a, cat, end = 5, 6, 3
    assert batch.labels.tolist() == [[IGNORE, IGNORE, IGNORE, a, cat, end, IGNORE]]


def test_labelled_text_serves_a_language_model_as_text(tokenizer: Any) -> None:
    (batch,) = language(tokenizer, [row("labelled", text="the cat", label=1)]).batches(1)
    assert batch.labels.tolist() == [[6, IGNORE]]


def test_nothing_left_is_an_error_that_says_why(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="no row is left") as caught:
        language(tokenizer, [row(text="cat"), row(text="")])
    assert "2 rows" in (caught.value.detail or "")


def test_a_token_the_model_does_not_know_is_refused(tokenizer: Any) -> None:
    config = {**CONFIG, "vocab_size": 20}
    with pytest.raises(InputError) as caught:
        encode(TEXT_ROWS, tokenizer, task="causal-lm", config=config, max_length=64)
    assert "the model knows 20" in (caught.value.detail or "")


def test_a_classifier_has_one_label_per_row(tokenizer: Any) -> None:
    rows = [
        row("labelled", text="the film was great", label="good"),
        row("labelled", text="awful plot", label=0),
        row("labelled", text="bad", label="1"),
    ]
    encoded = classes(tokenizer, rows)
    (batch,) = encoded.batches(3)
    assert batch.labels.tolist() == [1, 0, 1]
    assert batch.inputs["input_ids"].shape == (3, 4)
    assert encoded.unlabelled == 0


def test_text_without_labels_serves_a_classifier_that_draws_them(tokenizer: Any) -> None:
    encoded = classes(tokenizer, TEXT_ROWS)
    (batch,) = encoded.batches(99)
    assert batch.labels.tolist() == [UNKNOWN] * len(TEXTS)
    assert encoded.unlabelled == len(TEXTS)


def test_a_classifier_cannot_read_chats(tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "a"}]
    with pytest.raises(DataError, match="text and label"):
        classes(tokenizer, [row("chat", messages=messages)])


def test_a_cut_keeps_the_token_at_the_end_that_a_classifier_reads(tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    closing = tiny_tokenizer(tmp_path)
    closing.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    encoded = classes(closing, [row("labelled", text=TEXTS[0], label=1)], max_length=5)
    assert encoded.rows[0].ids == (2, 4, 6, 10, 3)
    assert encoded.truncated == 1


def test_a_label_that_is_no_class_is_refused_with_the_classes(tokenizer: Any) -> None:
    for label in ("bad!", 2, -1, "2"):
        with pytest.raises(DataError) as caught:
            classes(tokenizer, [row("labelled", text="bad", label=label)])
        assert "bad, good" in (caught.value.detail or "")
        assert "d.jsonl:1" in (caught.value.detail or "")


def test_a_class_name_goes_before_a_number_spelled_as_text() -> None:
    names = class_names({"id2label": {"1": "0", "0": "1"}})
    assert names == ("1", "0")
    assert class_index("0", names, "here") == 1
    assert class_index(0, names, "here") == 0


def test_classes_are_known_from_any_of_the_forms_config_has() -> None:
    many = {"id2label": {str(n): f"c{n}" for n in range(11)}}
    assert class_names(many) == tuple(f"c{n}" for n in range(11))
    assert class_names({"label2id": {"b": 1, "a": 0}}) == ("a", "b")
    assert class_names({}) == ("LABEL_0", "LABEL_1")


@pytest.mark.parametrize(
    ("parameters", "longest", "rows"),
    [
        (10**6, 10, 32),
        (22 * 10**6, 256, 4),
        (135 * 10**6, 512, 1),
        (135 * 10**6, 250, 2),
        (11 * 10**8, 512, 1),
        (11 * 10**8, 128, 2),
        (10**12, 4096, 1),
    ],
)
def test_the_automatic_batch_size_follows_from_model_and_rows(
    parameters: int, longest: int, rows: int
) -> None:
    assert auto_batch_size(parameters, longest) == rows


CHAT = [
    {"role": "user", "content": "what is it ?"},
    {"role": "assistant", "content": "a red fish ."},
    {"role": "user", "content": "why ?"},
]


@pytest.mark.parametrize(
    "one",
    [
        row("completion", prompt="what is it ?", completion=" a red fish ."),
        row("chat", messages=CHAT),
        row(text="a red fish ."),
    ],
    ids=lambda one: one.kind,
)
def test_prompts_are_asked_for_too_where_that_is_wanted(tokenizer: Any, one: Row) -> None:
    options: dict[str, Any] = {"task": "causal-lm", "config": CONFIG, "max_length": 64}
    (some,) = encode([one], tokenizer, **options).rows
    (every,) = encode([one], tokenizer, completion_only=False, **options).rows
    assert every.ids == some.ids
    assert every.labels == (*every.ids[1:], IGNORE)
    asked = [label for label in some.labels if label != IGNORE]
    assert (len(asked) < len(every.labels) - 1) == (one.kind != "text")


def test_a_chat_without_a_reply_is_learned_only_where_prompts_are(tokenizer: Any) -> None:
    options: dict[str, Any] = {"task": "causal-lm", "config": CONFIG, "max_length": 64}
    question = row("chat", messages=CHAT[:1])
    with pytest.raises(DataError, match="no row is left"):
        encode([question], tokenizer, **options)
    assert len(encode([question], tokenizer, completion_only=False, **options).rows) == 1
