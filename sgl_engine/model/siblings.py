"""Reads the requests of one call: what several of them have in common, once.

Questions about one picture differ in their last text alone. The first of them is read as any request; of
every other only what follows the last control token before that text is tokenized, where the chat template
would write the same around it (``sgl_engine.chat.sealed``). The prompt is the same as if it had been read
alone; where that is not certain, it is read alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sgl_engine.chat.sealed import Seal, Transcript
from sgl_engine.chat.template import chat_template, close_thoughts
from sgl_engine.config import LimitsConfig, PictureConfig, ReuseConfig
from sgl_engine.model.caller_tokens import CallerTokenizer
from sgl_engine.model.encoding import check_inputs, encode
from sgl_engine.prompt.encoded import TOKEN_INPUTS, EncodedPrompt
from sgl_engine.prompt.texts import check_fields, check_lengths
from sgl_engine.request import ImagePart, Message, Request, check_wanted

if TYPE_CHECKING:
    from sgl_engine.model.vlm import VLM


class Siblings:
    """The requests of one call; used in one thread, and dropped at its end."""

    def __init__(self) -> None:
        self._pictures: dict[Hashable, tuple[Request, Request]] = {}
        self._read: dict[Hashable, _Read] = {}
        self._seen: dict[Hashable, Any] = {}  # what image processors made of pictures, for the other model

    def load(self, request: Request, load: Callable[[Request], Request]) -> Request:
        """``load(request)``, which loads its pictures; those that another one has brought are known."""
        images = request.images
        sizes = request.min_pixels, request.max_pixels, request.max_visual_tokens
        key = (tuple(id(part.source) for part in images), sizes)
        if not images or key not in self._pictures:
            loaded = load(request)
            self._pictures[key] = request, loaded  # kept, so that no id is used again
            return loaded
        check_wanted(request, "before its images were looked up")
        pages: dict[Any, list[ImagePart]] = {}
        for page in self._pictures[key][1].images:
            pages.setdefault(page.block, []).append(page)
        blocks = iter(pages.values())
        messages = tuple(
            replace(
                message,
                content=tuple(
                    piece
                    for part in message.content
                    for piece in (next(blocks) if isinstance(part, ImagePart) else [part])
                ),
            )
            for message in request.messages
        )
        return replace(request, messages=messages)

    def encode(
        self,
        vlm: VLM,
        request: Request,
        limits: LimitsConfig,
        reuse: ReuseConfig,
        pictures: PictureConfig,
    ) -> EncodedPrompt:
        """``vlm.encode``, of a request whose pictures are loaded; raises the same."""
        check_fields(request)
        beginning = _beginning(vlm, request)
        if beginning is None:
            return encode(vlm, request, limits, reuse, pictures, seen=self._seen)
        # One model may have both roles, and in each of them see pictures of another size.
        key = beginning, pictures
        known = self._read.get(key)
        others = _Others(_without_text(request), limits, reuse)
        if known is not None and known.others == others:
            check_lengths(request, limits, vlm.processor.tokenizer, vlm.context_tokens, vlm.name)
            check_wanted(request, "before its text was read")
            prompt = known.sibling(request)
            if prompt is not None:
                check_inputs(prompt.inputs, vlm.context_tokens, vlm.name)
                return prompt
        transcript = Transcript(Seal())
        prompt = encode(vlm, request, limits, reuse, pictures, transcript, self._seen)
        if known is None:
            self._read[key] = _Read(vlm, request, others, prompt, transcript)
        return prompt


def _beginning(vlm: VLM, request: Request) -> Hashable | None:
    """What stands before a request's last text; None where it ends with none."""
    if not request.messages or request.messages[-1].role != "user":
        return None
    if not request.messages[-1].content or not isinstance(request.messages[-1].content[-1], str):
        return None
    parts = [
        id(part.source) if isinstance(part, ImagePart) else part
        for message in request.messages
        for part in (message.role, *message.content)
    ]
    return id(vlm), *parts[:-1]


@dataclass(frozen=True)
class _Others:
    """All that a prompt may depend on, but for its model, its parts and how large its pictures are."""

    request: tuple[Request, list[Message]]
    limits: LimitsConfig
    reuse: ReuseConfig


def _without_text(request: Request) -> tuple[Request, list[Message]]:
    """All that a request says beside the parts of its messages."""
    plain = [replace(message, content=()) for message in request.messages]
    return replace(request, messages=(), cancel=None), plain


def _text(request: Request) -> str:
    return str(request.messages[-1].content[-1])


@dataclass(frozen=True)
class _Tail:
    """What siblings have of their own, around the text.

    Attributes:
        lead: From the last control token before the text to the text, disguised.
        end: What follows the text, disguised.
        tokens: Tokens of the prompt up to that control token, itself included.
    """

    lead: str
    end: str
    tokens: int


class _Read:
    """A request that was read, by whose side others can be."""

    def __init__(
        self,
        vlm: VLM,
        request: Request,
        others: _Others,
        prompt: EncodedPrompt,
        transcript: Transcript,
    ) -> None:
        self.others = others
        self._vlm, self._request, self._prompt, self._transcript = vlm, request, prompt, transcript

    def sibling(self, request: Request) -> EncodedPrompt | None:
        """The prompt of a request that differs in its last text; None where it has to be read alone."""
        tail, text = self._tail, _text(request)
        if tail is None or not self._transcript.seal.holds_for(text, self._disguise):
            return None
        ids = self._ids(tail, text, request)
        return None if ids is None else self._with(ids, tail.tokens)

    @property
    def _disguise(self) -> Any:
        assert self._transcript.rendered is not None, "it was read"
        return self._transcript.rendered.disguise

    @cached_property
    def _tail(self) -> _Tail | None:
        """Where the first prompt can be cut; None where it cannot. Tried on that prompt."""
        template = chat_template(self._vlm.processor)
        around = self._transcript.seal.around(template)
        if around is None or not getattr(self._vlm.processor.tokenizer, "is_fast", False):
            return None
        before, end = around
        own = self._disguise.hide(_text(self._request)) + self._closed("", end)
        given = self._transcript.given
        if not end.strip() or not before or not given.endswith(own):
            return None  # the processor has done something to the text
        anchor = _last_control(self._vlm.processor.tokenizer, given[: len(given) - len(own)])
        if anchor is None:
            return None
        lead = given[anchor : len(given) - len(own)]
        ids = self._prompt.input_ids[0].tolist()
        read = self._ids(_Tail(lead, end, 0), _text(self._request), self._request)
        tokens = len(ids) - len(read or ()) + 1
        last = max((span.positions[-1] for span in self._prompt.spans), default=-1)
        if not read or tokens <= last or ids[tokens - 1 :] != read or not self._is_plain(tokens):
            return None
        return _Tail(lead, end, tokens)

    def _closed(self, text: str, end: str) -> str:
        """The end of a prompt, with its thoughts closed where that is asked for."""
        if self._request.max_reasoning_tokens != 0:
            return text + end
        return close_thoughts(text + end, chat_template(self._vlm.processor))

    def _ids(self, tail: _Tail, text: str, request: Request) -> list[int] | None:
        """The tokens from the last control token before the text on; None where that is none."""
        rendered = self._transcript.rendered
        assert rendered is not None, "it was read"
        hidden = self._disguise.hide(text)
        if self._closed(hidden, tail.end) != hidden + self._closed("", tail.end):
            return None
        waiting = partial(check_wanted, request, "while other requests were tokenized")
        reader = CallerTokenizer(
            self._vlm.processor.tokenizer,
            rendered.disguise,
            frozenset(rendered.control.values()),
            lambda: self._vlm.processing(waiting),
        )
        ids = reader.uncut(tail.lead + hidden + self._closed("", tail.end))
        if not ids or (tail.tokens and ids[0] != int(self._prompt.input_ids[0, tail.tokens - 1])):
            return None
        return ids

    def _is_plain(self, tokens: int) -> bool:
        """Whether nothing but the tokens themselves tells one end of a prompt from another."""
        inputs = self._prompt.inputs
        return all(bool((inputs[name][:, tokens:] == inputs[name][:, -1:]).all()) for name in _marks(inputs))

    def _with(self, ids: list[int], tokens: int) -> EncodedPrompt:
        """The first prompt with another end."""
        first = self._prompt
        added = first.input_ids.new_tensor([ids[1:]])
        inputs: dict[str, Tensor] = dict(first.inputs)
        inputs["input_ids"] = torch.cat((first.input_ids[:, :tokens], added), dim=1)
        for name in _marks(first.inputs):
            mark = first.inputs[name]
            inputs[name] = torch.cat((mark[:, :tokens], mark[:, -1:].expand(-1, added.shape[1])), dim=1)
        prompt = replace(
            first,
            inputs=inputs,
            input_ids=inputs["input_ids"],
            positions=self._vlm.family.positions(self._vlm.model, inputs),
            cut=lambda: first.tiles,
        )
        vars(prompt)["picture_digests"] = first.picture_digests  # of the same pictures: digested once
        return prompt


def _marks(inputs: Any) -> list[str]:
    return [name for name in inputs if name in TOKEN_INPUTS and name != "input_ids"]


def _last_control(tokenizer: Any, text: str) -> int | None:
    """Where the last token begins at which a tokenizer cuts a text whatever stands around it."""
    added = [token for token in tokenizer.added_tokens_decoder.values() if str(token.content).strip()]
    contents = sorted((str(token.content) for token in added), key=len, reverse=True)
    found = list(re.finditer("|".join(map(re.escape, contents)), text)) if contents else []
    if not found:
        return None
    last = found[-1][0]
    [token] = [each for each in added if str(each.content) == last]
    within = sum(last in content for content in contents) > 1  # a longer one could begin before it
    return None if token.normalized or token.single_word or within else found[-1].start()
