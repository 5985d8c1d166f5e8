"""Which tokens of a row the model is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mergekit_cl.errors import DataError, InputError
from mergekit_cl.training.rows import Kind, Row, make_row
from mergekit_cl.training.tokenizer import length_limit, load_tokenizer, pad_id
from mergekit_cl.training.tokens import reply_spans, tokenize
from tests.tiny_models import tiny_tokenizer


def row(kind: Kind, **content: Any) -> Row:
    return make_row(kind, content, "d.jsonl:1")


def read(tokenizer: Any, tokens: Any) -> list[str]:
    """The tokens as words, those that are asked for in capitals."""
    words = tokenizer.convert_ids_to_tokens(tokens.ids)
    return [w.upper() if asked else w for w, asked in zip(words, tokens.asked, strict=True)]


def byte_tokenizer(path: Path, **extra: Any) -> Any:
    """A byte-level BPE whose tokens do not respect words: 'ab' is one token anywhere."""
    from tokenizers import AddedToken, Tokenizer, pre_tokenizers, processors
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(letters)}
    vocabulary["ab"] = len(vocabulary)
    core = Tokenizer(BPE(vocabulary, [("a", "b")]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", core.token_to_id("<s>"))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", **extra
    )
    tokenizer.save_pretrained(path)
    return tokenizer


def test_all_of_a_text_is_asked_for(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path)
    tokens = tokenize(row("text", text="the cat sat"), tokenizer)
    assert read(tokenizer, tokens) == ["THE", "CAT", "SAT"]
    assert tokens == tokenize(row("labelled", text="the cat sat", label=1), tokenizer)


def test_a_prompt_is_not_asked_for_and_a_completion_is_up_to_its_end(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path)
    tokens = tokenize(row("completion", prompt="what is it ?", completion=" a cat"), tokenizer)
    assert read(tokenizer, tokens) == ["what", "is", "it", "?", "A", "CAT", "</S>"]


def test_an_end_token_that_is_there_is_not_added_again(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path)
    tokens = tokenize(row("completion", prompt="why ?", completion=" yes </s>"), tokenizer)
    assert read(tokenizer, tokens) == ["why", "?", "YES", "</S>"]


def test_an_empty_completion_asks_for_nothing(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path)
    assert not any(tokenize(row("completion", prompt="why", completion=""), tokenizer).asked)


def test_a_token_across_the_border_belongs_to_the_completion(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(tmp_path)
    tokens = tokenize(row("completion", prompt="xa", completion="bx"), tokenizer)
    assert read(tokenizer, tokens) == ["<s>", "x", "AB", "X", "</S>"]


def test_letters_of_several_bytes_are_asked_for_whole(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(tmp_path)
    tokens = tokenize(row("completion", prompt="ü", completion="ü"), tokenizer)
    assert tokens.asked == (False, False, False, True, True, True)


def test_replies_of_the_assistant_are_asked_for_with_their_end(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path)
    messages = [
        {"role": "system", "content": "hello"},
        {"role": "user", "content": "what is it ?"},
        {"role": "assistant", "content": "a cat"},
        {"role": "user", "content": "a cat"},
        {"role": "assistant", "content": "yes"},
    ]
    expected = (
        "system : hello </s> user : what is it ? </s> assistant : A CAT </S> "
        "user : a cat </s> assistant : YES </S>"
    )
    assert read(tokenizer, tokenize(row("chat", messages=messages), tokenizer)) == expected.split()


def test_only_the_first_special_token_closes_a_reply(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{{ '<s> ' + m['role'] + ' ' + m['content'] + ' </s> ' }}"
        "{% endfor %}"
    )
    tokenizer = tiny_tokenizer(tmp_path, chat_template=template)
    messages = [{"role": "assistant", "content": "yes"}, {"role": "user", "content": "no"}]
    tokens = tokenize(row("chat", messages=messages), tokenizer)
    assert read(tokenizer, tokens) == [
        *("<s>", "assistant", "YES", "</S>"),
        *("<s>", "user", "no", "</s>"),
    ]


def test_the_template_writes_the_start_token_and_the_tokenizer_does_not(tmp_path: Path) -> None:
    template = "<s>{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer = byte_tokenizer(tmp_path, chat_template=template)
    tokens = tokenize(row("chat", messages=[{"role": "assistant", "content": "x"}]), tokenizer)
    assert read(tokenizer, tokens) == ["<s>", "X"]


def test_a_template_that_trims_replies_and_marks_the_last_turn_is_understood() -> None:
    def render(messages: Any) -> str:
        turns = [f"[{m['role']}]{m['content'].strip()}" for m in messages]
        return "".join(turns[:-1]) + turns[-1].replace("]", "]<think></think>")

    messages = [
        {"role": "assistant", "content": " first "},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "last\n"},
    ]
    text, spans = reply_spans(messages, render, "here")
    assert [text[begin:end] for begin, end in spans] == ["first", "last"]


def test_a_reply_that_stands_elsewhere_too_is_found_where_it_is_the_reply() -> None:
    def render(messages: Any) -> str:
        return " ".join(m["content"] for m in messages)

    messages = [{"role": "user", "content": "yes"}, {"role": "assistant", "content": "yes"}]
    assert reply_spans(messages, render, "here") == ("yes yes", [(4, 7)])


def test_a_template_that_changes_replies_is_refused() -> None:
    messages = [{"role": "assistant", "content": "Yes"}]
    with pytest.raises(DataError, match="does not copy a reply"):
        reply_spans(messages, lambda ms: ms[0]["content"].lower(), "here")
    with pytest.raises(DataError, match="does not copy a reply"):
        reply_spans(messages, lambda ms: f"{len(ms[0]['content'])} {ms[0]['content']}", "here")


def test_a_chat_needs_a_template(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path, chat_template=None)
    with pytest.raises(InputError, match="no chat template"):
        tokenize(row("chat", messages=[{"role": "user", "content": "a"}]), tokenizer)


def test_a_template_that_refuses_a_row_is_quoted(tmp_path: Path) -> None:
    template = "{{ raise_exception('roles must alternate') }}"
    tokenizer = tiny_tokenizer(tmp_path, chat_template=template)
    with pytest.raises(DataError) as caught:
        tokenize(row("chat", messages=[{"role": "user", "content": "a"}]), tokenizer)
    assert "roles must alternate" in (caught.value.detail or "")


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="cannot be loaded"):
        load_tokenizer(tmp_path)


def test_the_padding_token_is_the_models_then_the_tokenizers_then_the_end(tmp_path: Path) -> None:
    padded, bare = tiny_tokenizer(tmp_path / "a"), tiny_tokenizer(tmp_path / "b", pad=False)
    assert pad_id(padded, {"pad_token_id": 7, "vocab_size": 69}) == 7
    assert pad_id(padded, {"pad_token_id": None, "vocab_size": 69}) == 0
    assert pad_id(bare, {"vocab_size": 69}) == 3
    assert pad_id(bare, {"pad_token_id": 69, "vocab_size": 69}) == 3
    bare.eos_token = None
    assert pad_id(bare, {}) == 0


def test_the_length_limit_is_the_least_that_anyone_states(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path)
    assert length_limit(tokenizer, {}) is None
    assert length_limit(tokenizer, {"max_position_embeddings": 64}) == 64
    tokenizer.model_max_length = 32
    assert length_limit(tokenizer, {"n_positions": 64}) == 32
