"""From the body of a request to the texts that are to be written."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from roots.errors import problem
from roots.generation.chat import ChatTemplate
from roots.generation.generate import with_seed_of
from roots.generation.options import GenerationOptions
from roots.generation.prompts import encode_prompts
from roots.generation.sampling import SamplingOptions
from roots.serving.answers import Answer
from roots.serving.bodies import ChatBody, CompletionBody, Sampled
from roots.serving.engine import Order
from roots.serving.forms import ChatForm, CompletionForm, Form
from roots.serving.refusals import Refusal
from roots.serving.replies import Work
from roots.serving.settings import Settings
from roots.tokenizer.tokenizer import Tokenizer

# What OpenAI's API takes where a completion says nothing.
NEW_TOKENS = 16
_SEEDS = 2**64


@dataclass(frozen=True)
class Clerk:
    """Reads requests; `template` is that of chats, None where the tokenizer has none."""

    settings: Settings
    tokenizer: Tokenizer
    template: ChatTemplate | None
    vocab_size: int

    def completion(self, body: CompletionBody) -> Work:
        """The work of a completion. Raises Refusal for what cannot be asked for."""
        self._check_model(body)
        prompts, texts = self._prompts(body.prompt)
        wanted = NEW_TOKENS if body.max_tokens is None else body.max_tokens
        tells, echo = body.logprobs is not None, bool(body.echo)
        _check_new_tokens(wanted, least=0 if echo else 1)
        options = _options(body, wanted, likeliest=body.logprobs, of_prompt=echo)
        form = CompletionForm(tells)
        echoed = texts if echo else [None] * len(texts)
        return self._work(body, prompts, echoed, options, form)

    def chat(self, body: ChatBody) -> Work:
        """The work of a chat. Raises Refusal for what cannot be asked for."""
        self._check_model(body)
        if self.template is None:
            rule = "the tokenizer has no chat template; use /v1/completions"
            raise Refusal(400, rule, code="no_chat_template")
        messages = [each.model_dump(exclude_none=True) for each in body.messages]
        prompt = self.template.encode(self.tokenizer, messages)
        wanted = body.max_tokens
        if wanted is None:
            wanted = body.max_completion_tokens
        if wanted is None:
            wanted = max(1, self.settings.context - len(prompt))
        _check_new_tokens(wanted, least=1)
        if body.top_logprobs is not None and not body.logprobs:
            rule, fix = "needs logprobs", "give logprobs=true, or leave it out"
            line = problem("top_logprobs", body.top_logprobs, rule, fix)
            raise Refusal(400, line, param="top_logprobs")
        likeliest = (body.top_logprobs or 0) if body.logprobs else None
        options = _options(body, wanted, likeliest=likeliest)
        return self._work(body, [prompt], [None], options, ChatForm(bool(body.logprobs)))

    def _check_model(self, body: Sampled) -> None:
        if body.model not in (None, self.settings.name):
            rule, fix = "is not served here", f"ask for {self.settings.name}"
            line = problem("model", body.model, rule, fix)
            raise Refusal(404, line, param="model", code="model_not_found")

    def _prompts(
        self, prompt: str | list[str] | list[int] | list[list[int]]
    ) -> tuple[list[tuple[int, ...]], list[str]]:
        """The token ids of every prompt, and its text."""
        if isinstance(prompt, str):
            prompt = [prompt]
        if not prompt:
            raise Refusal(400, problem("prompt", prompt, "is empty", "give one"), param="prompt")
        if isinstance(prompt[0], str):
            texts = [str(each) for each in prompt]
            return [tuple(ids) for ids in encode_prompts(self.tokenizer, texts)], texts
        lists: list[Any] = [prompt] if isinstance(prompt[0], int) else prompt
        for ids in lists:
            wrong = [each for each in ids if not 0 <= each < self.vocab_size]
            if wrong or not ids:
                rule = f"holds no tokens, or others than 0 to {self.vocab_size - 1}"
                value = wrong[0] if wrong else ids
                fix = "encode it with the tokenizer of this model"
                raise Refusal(400, problem("prompt", value, rule, fix), param="prompt")
        known = self.tokenizer.vocab_size
        decode = self.tokenizer.decode
        return [tuple(ids) for ids in lists], [decode(i for i in ids if i < known) for ids in lists]

    def _work(
        self,
        body: Sampled,
        prompts: Sequence[tuple[int, ...]],
        echoed: Sequence[str | None],
        options: GenerationOptions,
        form: Form,
    ) -> Work:
        for prompt in prompts:
            self._check_room(len(prompt), options.max_new_tokens)
        tells = options.log_probabilities is not None
        orders, answers = [], []
        for prompt, text in zip(prompts, echoed, strict=True):
            for _ in range(body.n or 1):
                orders.append(Order(prompt, with_seed_of(options, len(orders))))
                answers.append(Answer(self.tokenizer, prompt, text, tells))
        most = self.settings.max_rows + self.settings.max_waiting
        if len(orders) > most:
            rule, fix = f"is more than the {most} that can wait here", "send several requests"
            raise Refusal(400, problem("prompts times n", len(orders), rule, fix), param="n")
        usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        return Work(
            model=self.settings.name,
            orders=orders,
            answers=answers,
            form=form,
            prompt_tokens=sum(map(len, prompts)),
            streams=bool(body.stream),
            usage=usage,
        )

    def _check_room(self, prompt: int, new: int) -> None:
        context = self.settings.context
        if prompt + new > context:
            rule = f"with max_tokens={new} are more than the {context} tokens of a text here"
            fix = "shorten the prompt or lower max_tokens"
            line = problem("prompt tokens", prompt, rule, fix)
            raise Refusal(400, line, param="prompt", code="context_length_exceeded")


def _check_new_tokens(wanted: int, *, least: int) -> None:
    if wanted < least:
        line = problem("max_tokens", wanted, f"must be {least} or more", "raise it")
        raise Refusal(400, line, param="max_tokens")


def _options(
    body: Sampled, new_tokens: int, *, likeliest: int | None, of_prompt: bool = False
) -> GenerationOptions:
    """Raises RootsError with every field that is out of range."""
    names = {each.name for each in fields(SamplingOptions)} - {"greedy"}
    given = {name: getattr(body, name) for name in names}
    sampling: dict[str, Any] = {name: each for name, each in given.items() if each is not None}
    if body.temperature == 0:
        del sampling["temperature"]
        sampling["greedy"] = True
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or ()
    seed = secrets.randbelow(_SEEDS) if body.seed is None else body.seed % _SEEDS
    return GenerationOptions(
        max_new_tokens=new_tokens,
        sampling=SamplingOptions(**sampling),
        seed=seed,
        stop=tuple(stop),
        log_probabilities=likeliest,
        of_prompt=of_prompt,
    )
