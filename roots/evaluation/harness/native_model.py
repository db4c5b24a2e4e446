"""ROOTS' models as lm_eval knows models: texts in, log-likelihoods and texts out.

What is put around texts is what `lm_eval --model hf` puts there on the exported model, so that the
scores are the same: contexts stand behind what begins the tokenizer's texts, an empty one is the
token that begins a text, names of special tokens in a text are these tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from roots.errors import RootsError, problem
from roots.evaluation.harness.text_model import TextModel, Writing
from roots.generation.chat import ChatTemplate
from roots.generation.sampling import SamplingOptions
from roots.tokenizer.tokenizer import Tokenizer

# A request as TemplateLM hands it on: its texts, and the ids of context and continuation.
Encoded = tuple[Any, list[int], list[int]]
# Tokens that a task gets which does not say how many it wants, as from lm_eval's other models.
DEFAULT_NEW_TOKENS = 256
_OF_SAMPLING = frozenset(each.name for each in fields(SamplingOptions)) - {"greedy", "temperature"}
_OF_BEAMS = frozenset({"num_beams", "length_penalty"})


class NativeModel(TemplateLM):
    """A model and its tokenizer under lm_eval."""

    def __init__(
        self,
        texts: TextModel,
        words: Tokenizer,
        *,
        name: str,
        template: ChatTemplate | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """`name` tells tokenizers apart; `progress` is called with requests done and all."""
        super().__init__()
        self.backend = texts.kind
        self.max_length = texts.max_length
        self._texts = texts
        self._words = words
        self._name = name
        self._template = template
        self._progress = progress
        begin = words.special.documents.begin
        self._begin_text = words.decode(begin, special_tokens=True) if begin else None

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self._words.end_of_document

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context."""
        return self._words.special.start[0]

    @property
    def tokenizer_name(self) -> str:
        """What caches of requests tell tokenizers apart by."""
        return self._name

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The text of the template, where one is asked for."""
        return self._template.text if chat_template and self._template else None

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The text of a chat, up to where the next answer begins or within its last message."""
        assert self._template is not None, "checked before anything is evaluated"
        return self._template.render(chat_history, continue_last=not add_generation_prompt)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Ids of a text, within what stands around texts unless asked otherwise."""
        ids = self._words.encode(string, special_tokens=True)
        around = add_special_tokens
        if around is None:
            around = self._begin_text is None or not string.startswith(self._begin_text)
        if not around:
            return ids
        documents = self._words.special.documents
        return [*documents.begin, *ids, *([documents.end] if self.backend == "seq2seq" else [])]

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """(log p, whether greedy decoding writes it) of continuations; no bar but `progress`."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(
        self, requests: list[Encoded], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """(log p, whether greedy decoding writes it) of every continuation."""
        pairs = []
        for texts, context, continuation in requests:
            if not continuation:
                rule = "adds no token of its own to the context before it"
                fix = "let the task's choices be texts that do not merge with their context"
                raise RootsError(problem("continuation", texts[1], rule, fix))
            pairs.append((context or [self.prefix_token_id], continuation))
        scores = self._texts.score(pairs, lambda done: self._report(done, len(pairs)))
        return [(score.total, score.greedy) for score in scores]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """log p of whole texts, each in windows of max_length that predict every token once."""
        windows: list[Encoded] = []
        counts = []
        for (text,) in (request.args for request in requests):
            found = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            some = [((None, text), *make_disjoint_window(window)) for window in found]
            windows += some
            counts.append(len(some))
        scores = iter(self._loglikelihood_tokens(windows))
        return [sum(next(scores)[0] for _ in range(count)) for count in counts]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model writes behind every context, up to the first of the stop texts."""
        groups: dict[Writing, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(writing_of(request.args[1], request.task_name), []).append(number)
        written: dict[int, str] = {}
        for how, numbers in groups.items():
            room, before = self._texts.room(how), len(written)
            contexts = [self._context(requests[number].args[0], room) for number in numbers]

            def report(done: int, before: int = before) -> None:
                self._report(before + done, len(requests))

            for number, ids in zip(numbers, self._texts.write(contexts, how, report), strict=True):
                # Alone, as lm_eval's other models do it, whatever stood before.
                text = self._words.decode(ids)
                written[number] = postprocess_generated_text(text, list(how.until), None)
        return [written[number] for number in range(len(requests))]

    def _context(self, text: str, room: int) -> list[int]:
        """The ids of a context; of one that is too long the last ones."""
        return (self.tok_encode(text) or [self.prefix_token_id])[-room:]

    def _report(self, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(done, total)


def writing_of(keywords: dict[str, Any], task: str | None) -> Writing:
    """How a task's generation_kwargs want texts written.

    Raises RootsError for what ROOTS does not do and for values out of range.
    """
    wanted = dict(normalize_gen_kwargs(keywords, DEFAULT_NEW_TOKENS))
    until = tuple(text for text in wanted.pop("until") if text)
    new_tokens, sample = wanted.pop("max_gen_toks"), wanted.pop("do_sample")
    temperature = wanted.pop("temperature", 1.0)
    unknown = sorted(wanted.keys() - _OF_SAMPLING - _OF_BEAMS)
    if unknown:
        known = ", ".join(sorted(_OF_SAMPLING | _OF_BEAMS))
        rule = f"is not among what ROOTS knows (do_sample, temperature, {known})"
        where = f"generation_kwargs of task {task}"
        raise RootsError(*(problem(where, key, rule, "leave it out") for key in unknown))
    chosen = {name: value for name, value in wanted.items() if name in _OF_SAMPLING}
    choice = {"temperature": temperature} if sample else {"greedy": True}
    beams = {name: value for name, value in wanted.items() if name in _OF_BEAMS}
    sampling = SamplingOptions(**choice, **chosen)
    return Writing(max_new_tokens=new_tokens, until=until, sampling=sampling, **beams)
