"""Text of the caller -> tokens, none of them a control token.

A tokenizer reads the prompt whole, so that its tokens are those of any other prompt of the same wording. Only
where it has then made a control token of something that the caller wrote is the text cut, inside that token's
text, and the pieces are read again.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from sgl_engine.chat.caller_text import Disguise
from sgl_engine.errors import InvalidRequestError

_LEAD = "\n"
"""Read before a piece and taken off again: at a text's beginning some tokenizers add a space."""
_FILLING = {"input_ids": 0, "attention_mask": 1, "token_type_ids": 0}
"""What a tokenizer returns for each token; the ids themselves are filled in."""


@dataclass(frozen=True)
class _Piece:
    """Part of a text, read.

    Attributes:
        encoding: Of the tokenizer.
        skip: So many tokens at its beginning are not the piece's.
        shift: Where in the text the encoding's first character is.
    """

    encoding: Any
    skip: int = 0
    shift: int = 0


class CallerTokenizer:
    """Stands in for a processor's tokenizer, for prompts with disguised text.

    Args:
        own: The tokenizer.
        disguise: Shows the text.
        control: Ids that disguised text must not become.
        turn: Entered while the tokenizer reads.

    Attributes:
        given: The last text that was read, disguised.
    """

    def __init__(
        self,
        own: Any,
        disguise: Disguise,
        control: frozenset[int],
        turn: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._own, self._disguise, self._control, self._turn = own, disguise, control, turn
        self.given = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def __call__(self, text: str | Sequence[str], **settings: Any) -> Any:
        """Tokens of the text undisguised, as the tokenizer returns them.

        Raises:
            InvalidRequestError: Some control token cannot be avoided.
        """
        self.given = text if isinstance(text, str) else text[-1]
        with self._turn():
            return self._tokens(text, settings)

    def uncut(self, text: str) -> list[int] | None:
        """Tokens of a text as a part of a prompt; None where it would have to be cut."""
        with self._turn():
            [encoding] = self._encode([self._disguise.show(text)])
        ids: list[int] = encoding.ids
        return None if self._cuts(text, _Piece(encoding)) else ids

    def _tokens(self, text: str | Sequence[str], settings: Mapping[str, Any]) -> Any:
        texts = [text] if isinstance(text, str) else list(text)
        shown = [self._disguise.show(each) for each in texts]
        if shown == texts:
            return self._own(text, **settings)
        read = self._own(shown[0] if isinstance(text, str) else shown, **settings)
        if not getattr(self._own, "is_fast", False):
            self._compare(texts, shown)
            return read
        pairs = zip(texts, read.encodings, strict=True)
        if not any(self._cuts(each, _Piece(encoding)) for each, encoding in pairs):
            return read
        return self._again(text, texts, read, settings)

    def _compare(self, texts: Sequence[str], shown: Sequence[str]) -> None:
        """Fails where a tokenizer that gives no positions has made control tokens of the caller's text."""
        for pair in zip(texts, shown, strict=True):
            numbers = []
            for text in pair:
                ids = self._own(text, add_special_tokens=False)["input_ids"]
                numbers.append(sum(index in self._control for index in ids))
            if numbers[0] != numbers[1]:
                raise self._refusal()

    def _again(self, text: Any, texts: Sequence[str], read: Any, settings: Mapping[str, Any]) -> Any:
        """What the tokenizer would return, had it no control tokens in the caller's text."""
        from transformers import BatchEncoding

        rows: dict[str, list[list[int]]] = {name: [] for name in read if name in _FILLING}
        places: list[Any] = []
        for each, encoding in zip(texts, read.encodings, strict=True):
            # Tokens that a tokenizer adds by itself stand at both ends.
            marks = encoding.special_tokens_mask
            before = next((at for at, mark in enumerate(marks) if not mark), len(marks))
            after = next((at for at, mark in enumerate(reversed(marks)) if not mark), 0)
            found, starts = self._read(each)
            ids = [*encoding.ids[:before], *found, *encoding.ids[len(marks) - after :]]
            for name, row in rows.items():
                row.append(ids if name == "input_ids" else [_FILLING[name]] * len(ids))
            places.append(_Places(starts, before))
        tensors = settings.get("return_tensors")
        flat = isinstance(text, str) and tensors is None
        data = {name: values[0] for name, values in rows.items()} if flat else rows
        return BatchEncoding(data, encoding=places, tensor_type=tensors, n_sequences=1)

    def _read(self, text: str) -> tuple[list[int], list[int]]:
        """The tokens of one text, cut until no control token touches what is disguised.

        Returns:
            Their ids, and at which character each begins.
        """
        done: dict[int, _Piece] = {}
        pending = [(0, len(text))]
        while pending:  # at most as often as the longest control token has characters
            again: list[tuple[int, int]] = []
            for (start, end), piece in zip(pending, self._pieces(text, pending), strict=True):
                cuts = self._cuts(text, piece)
                if cuts:
                    again += pairwise([start, *cuts, end])
                else:
                    done[start] = piece
            pending = again
        ids: list[int] = []
        starts: list[int] = []
        for start in sorted(done):
            piece = done[start]
            ids += piece.encoding.ids[piece.skip :]
            starts += [begin + piece.shift for begin, _ in piece.encoding.offsets[piece.skip :]]
        return ids, starts

    def _pieces(self, text: str, places: Sequence[tuple[int, int]]) -> list[_Piece]:
        """Reads parts of a text as what they are: not its beginning, but for the first."""
        shown = [self._disguise.show(text[start:end]) for start, end in places]
        led = [_LEAD * (start > 0) + part for (start, _), part in zip(places, shown, strict=True)]
        lead = self._encode([_LEAD])[0].ids
        pieces = []
        for (start, _), part, encoding in zip(places, shown, self._encode(led), strict=True):
            if start == 0:
                pieces.append(_Piece(encoding))
            elif encoding.ids[: len(lead)] == lead:
                pieces.append(_Piece(encoding, skip=len(lead), shift=start - len(_LEAD)))
            else:  # it joined the part
                pieces.append(_Piece(self._encode([part])[0], shift=start))
        return pieces

    def _encode(self, texts: list[str]) -> Any:
        return self._own(texts, add_special_tokens=False, padding=False, truncation=False).encodings

    def _cuts(self, text: str, piece: _Piece) -> list[int]:
        """Where to cut a text so that what became a control token, and is disguised, falls apart."""
        cuts: list[int] = []
        within = self._disguise.hidden_span(text, piece.shift)
        # A page has thousands of tokens, nearly all of them before that or after it: they are not looked at.
        for at, (index, place) in enumerate(zip(piece.encoding.ids, piece.encoding.offsets, strict=True)):
            if place[1] + piece.shift <= within.start or place[0] + piece.shift >= within.stop:
                continue
            span = piece.encoding.token_to_chars(at) if index in self._control else None
            if span is None or at < piece.skip:
                continue  # text, or a token that the tokenizer has added by itself
            start, end = span[0] + piece.shift, span[1] + piece.shift
            hidden = self._disguise.first_hidden(text, start, end)
            if hidden is None:
                continue  # the template's own
            cut = hidden + 1 if hidden + 1 < end else hidden
            if cut == start:
                raise self._refusal()
            cuts.append(cut)
        return cuts

    def _refusal(self) -> InvalidRequestError:
        return InvalidRequestError(
            f"The text contains a control token of the model, and {type(self._own).__name__} cannot read it "
            "as text.",
            remedy="Remove it, or write it with a space inside.",
        )


class _Places:
    """Where characters are among a row's tokens, for the processors that ask."""

    def __init__(self, starts: Sequence[int], before: int) -> None:
        self._starts, self._before = starts, before

    def char_to_token(self, position: int, _: int = 0) -> int:
        """The token that holds the character at ``position``."""
        return bisect_right(self._starts, position) - 1 + self._before
