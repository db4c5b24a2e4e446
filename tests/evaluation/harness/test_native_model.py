"""What lm_eval asks of a model: the ids around texts, their scores, and how texts are written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from roots.errors import RootsError
from roots.evaluation.harness.text_model import DecoderTexts, EncoderDecoderTexts
from roots.generation.chat import ChatTemplate
from roots.generation.network import Network
from roots.generation.sampling import SamplingOptions
from roots.tokenizer.tokenizer import load_tokenizer
from tests.helpers.decoders import small_decoder, small_model
from tests.helpers.encoder_decoders import small_encoder_decoder
from tests.helpers.words import BOS, EOS, write_words

pytest.importorskip("lm_eval", reason="is driven by lm_eval, which is not installed")

from lm_eval.api.instance import Instance

from roots.evaluation.harness.native_model import NativeModel, writing_of


def native(folder: Path, *, pairs: bool = False, **options: Any) -> NativeModel:
    words = load_tokenizer(write_words(folder))
    fields = {"vocab_size": 280, "sequence_length": 40}
    if pairs:
        texts: Any = EncoderDecoderTexts(small_encoder_decoder(**fields), words, EOS)
    else:
        decoder = small_decoder(small_model(init_std=0.3, **fields)).eval()
        texts = DecoderTexts(Network.of(decoder), words, decoder)
    return NativeModel(texts, words, name="x", **options)


def asked(kind: str, *arguments: Any) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


def test_contexts_stand_behind_what_begins_texts(tmp_path: Path) -> None:
    model = native(tmp_path / "decoder")
    plain = model.tok_encode("the cat", add_special_tokens=False)
    assert model.tok_encode("the cat") == [BOS, *plain]
    # As a chat template writes it.
    assert model.tok_encode("<bos>the cat") == [BOS, *plain]
    assert (model.prefix_token_id, model.eot_token_id) == (BOS, EOS)
    assert native(tmp_path / "pairs", pairs=True).tok_encode("the cat") == [BOS, *plain, EOS]


def test_choice_without_a_token_of_its_own_is_refused(tmp_path: Path) -> None:
    model = native(tmp_path)
    with pytest.raises(RootsError) as caught:
        model.loglikelihood([asked("loglikelihood", "the cat", "")])
    fix = "let the task's choices be texts that do not merge with their context"
    rule = "adds no token of its own to the context before it"
    assert caught.value.lines == (f"continuation='': {rule}; {fix}",)


def test_long_texts_are_predicted_in_windows_token_by_token_once(tmp_path: Path) -> None:
    done: list[tuple[int, int]] = []
    model = native(tmp_path, progress=lambda *each: done.append(each))
    text = "the cat sat on the mat " * 16
    ids = model.tok_encode(text)
    assert len(ids) > 80
    (total,) = model.loglikelihood_rolling([asked("loglikelihood_rolling", text)])
    parts = [((None, text), [BOS], ids[:40])]
    for start in range(40, len(ids), 40):
        window = ids[start : start + 40]
        behind = ids[start + len(window) - 41 : start]
        parts.append(((None, text), behind, window))
    assert total == pytest.approx(sum(score for score, _ in model._loglikelihood_tokens(parts)))
    assert done[-1] == (len(parts), len(parts))


@pytest.mark.parametrize("pairs", [False, True])
def test_texts_end_at_the_first_stop_text(tmp_path: Path, pairs: bool) -> None:
    model = native(tmp_path, pairs=pairs)
    requests = [asked("generate_until", "the cat", {"max_gen_toks": 12, "until": []})]
    (whole,) = model.generate_until(requests)
    assert len(whole) > 3
    stop = whole[2]
    requests[0] = asked("generate_until", "the cat", {"max_gen_toks": 12, "until": [stop]})
    assert model.generate_until(requests) == [whole.split(stop)[0]]


def test_texts_that_are_drawn_twice_differ(tmp_path: Path) -> None:
    how = {"max_gen_toks": 12, "until": [], "do_sample": True, "temperature": 1.0}
    model = native(tmp_path)
    first, second = model.generate_until([asked("generate_until", "the cat", how)] * 2)
    assert first != second
    pairs = native(tmp_path / "pairs", pairs=True)
    with pytest.raises(RootsError, match=r"^do_sample=True: asks an encoder-decoder to draw"):
        pairs.generate_until([asked("generate_until", "the cat", how)])


def test_what_tasks_want_of_texts_is_read_or_refused() -> None:
    assert writing_of({"until": "\n"}, "x").max_new_tokens == 256
    drawn = writing_of({"do_sample": True, "temperature": 0.5, "top_p": 0.9, "until": [""]}, "x")
    assert drawn.sampling == SamplingOptions(temperature=0.5, top_p=0.9)
    assert drawn.until == ()
    with pytest.raises(RootsError) as caught:
        writing_of({"logit_bias": 3, "best_of": 2}, "x")
    assert [line.split(":")[0] for line in caught.value.lines] == [
        "generation_kwargs of task x='best_of'",
        "generation_kwargs of task x='logit_bias'",
    ]


def test_texts_longer_than_the_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RootsError) as caught:
        native(tmp_path).generate_until([asked("generate_until", "the cat", {"max_gen_toks": 40})])
    assert caught.value.lines == (
        "max_gen_toks=40: must be below the model's sequence_length of 40: nothing else fits; "
        "set it in the task's generation_kwargs",
    )


def test_questions_are_put_by_the_chat_template(tmp_path: Path) -> None:
    text = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
    template = ChatTemplate(
        text + "{% if add_generation_prompt %}<answer>{% endif %}", tmp_path, {}
    )
    model = native(tmp_path, template=template)
    chat = [{"role": "user", "content": "who"}]
    assert model.apply_chat_template(chat) == "<user>who<answer>"
    assert model.apply_chat_template(chat, add_generation_prompt=False) == "<user>who"
    assert model.chat_template(True) == template.text
    assert model.tokenizer_name == "x"
