"""The last text of a prompt, watched while a chat template runs: may another text take its place?

Prompts of one call often differ in their last text alone. What a template asks about that text is noted with
the answer, and where it puts the text, too. So the same prompt holds any other text that gives the same
answers. Where a template changes the text, takes it apart or loses it, nothing is known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Self

from sgl_engine.chat.caller_text import CallerText, Disguise
from sgl_engine.chat.interruptible import parsed

if TYPE_CHECKING:
    from sgl_engine.chat.template import Rendered

_FILTERS = frozenset(
    "count d default first items last length list lower map reject rejectattr replace select selectattr "
    "string tojson trim upper".split()
)
"""They work by methods of the text, so that it notices."""
_COPIES = frozenset(("join", "format", "format_map"))


class Seal:
    """What became of one text."""

    def __init__(self) -> None:
        self._answers: list[tuple[str, str, Callable[[str], Any], Any]] = []
        self._broken = False
        self._around: tuple[str, str] | None = None

    def put(self, text: str, disguise: Disguise) -> SealedText:
        """The text, disguised already, as it is given to a template; what another one did is forgotten."""
        self._answers, self._broken, self._around = [], False, None
        return SealedText.of(self, disguise, text)

    def around(self, template: str) -> tuple[str, str] | None:
        """What stands before the text in the prompt, and after it, disguised; None where it is not known."""
        return None if self._broken or not notices(template) else self._around

    def holds_for(self, text: str, disguise: Disguise) -> bool:
        """Whether a template would do the same with another text."""
        if disguise.first_hidden(text) is not None:
            return False  # it has characters that the disguise takes for its own
        return all(
            test(disguise.show(before) + text + disguise.show(after)) == answer
            for before, after, test, answer in self._answers
        )

    def ask(self, text: SealedText, test: Callable[[str], Any]) -> Any:
        """Answers a question about a text that holds this one."""
        show = text.disguise.show
        answer = test(show(text.before) + show(text.own) + show(text.after))
        self._answers.append((text.before, text.after, test, answer))
        return answer

    def open(self) -> None:
        """Notes that nothing is known any more."""
        self._broken = True

    def end(self, before: str, after: str) -> None:
        """Notes where the text is in the whole prompt."""
        self._around = before, after


@lru_cache(maxsize=64)
def notices(template: str) -> bool:
    """Whether texts notice all that a template does with them: it uses nothing that copies without asking."""
    from jinja2 import nodes

    tree = parsed(template)
    filters = {
        node.name for node in tree.find_all((nodes.Filter, nodes.FilterBlock)) if hasattr(node, "name")
    }
    copies = any(node.attr in _COPIES for node in tree.find_all(nodes.Getattr))
    formats = any(
        not (isinstance(node.right, nodes.Const) and isinstance(node.right.value, int))
        for node in tree.find_all(nodes.Mod)
    )
    blocks = any(True for _ in tree.find_all(nodes.FilterBlock))
    return filters <= _FILTERS and not (copies or formats or blocks)


class SealedText(CallerText):
    """A sealed text, with what a template has put around it."""

    __slots__ = ("after", "before", "own", "seal")
    seal: Seal
    before: str
    own: str
    after: str

    @classmethod
    def of(cls, seal: Seal, disguise: Disguise, own: str, before: str = "", after: str = "") -> Self:
        """Makes one."""
        made = cls(f"{before}{own}{after}", disguise)
        made.seal, made.own, made.before, made.after = seal, own, before, after
        return made

    def _with(self, before: str = "", after: str = "") -> SealedText:
        if isinstance(before, SealedText) or isinstance(after, SealedText):
            self.seal.open()
        before, after = f"{_plain(before)}{self.before}", f"{self.after}{_plain(after)}"
        return SealedText.of(self.seal, self.disguise, self.own, before, after)

    def __add__(self, other: str) -> SealedText:
        return self._with(after=other)

    def __radd__(self, other: str) -> SealedText:
        return self._with(before=other)

    def joined(self, parts: Sequence[str]) -> SealedText:
        """All of them; this is one of them."""
        at = next(number for number, part in enumerate(parts) if part is self)
        if any(isinstance(part, SealedText) for part in parts[at + 1 :]):
            self.seal.open()
        before, after = (str.join("", map(_plain, some)) for some in (parts[:at], parts[at + 1 :]))
        return self._with(before, after)

    @property
    def plain(self) -> str:
        """Its characters as a plain string: this is how a prompt ends."""
        self.seal.end(self.before, self.after)
        return _plain(self)

    @property
    def shown(self) -> str:
        """What it hides; whoever asks for it can do anything with it."""
        self.seal.open()
        return self.disguise.show(_plain(self))


def _plain(text: str) -> str:
    return str.__getitem__(text, slice(None))


def _noted(name: str) -> Callable[..., Any]:
    """A method whose answer is noted."""

    def ask(self: SealedText, *args: Any) -> Any:
        shown = [_shown(self.disguise, each) for each in args]
        return self.seal.ask(self, lambda text: getattr(text, name)(*shown))

    return ask


def _trimmed(name: str) -> Callable[..., Any]:
    """A method that takes something away, or nothing, which is an answer as well."""

    def trim(self: SealedText, *args: Any) -> Any:
        shown = [_shown(self.disguise, each) for each in args]
        if self.seal.ask(self, lambda text: getattr(text, name)(*shown) == text):
            return self
        return _opened(name)(self, *args)

    return trim


def _opened(name: str) -> Callable[..., Any]:
    """Any other method, as of text without a seal."""

    def other(self: SealedText, *args: Any, **settings: Any) -> Any:
        self.seal.open()
        return getattr(CallerText(_plain(self), self.disguise), name)(*args, **settings)

    return other


def _shown(disguise: Disguise, value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(partial(_shown, disguise), value))
    return disguise.show(_plain(value)) if isinstance(value, str) else value


_ASKING = frozenset(
    "__eq__ __ne__ __lt__ __le__ __gt__ __ge__ __contains__ __len__ startswith endswith find rfind index "
    "rindex count isalpha isalnum isdigit isdecimal isnumeric islower isupper isspace istitle isascii "
    "isidentifier isprintable".split()
)
_TRIMMING = frozenset("strip lstrip rstrip removeprefix removesuffix".split())
_LEFT = frozenset("__add__ __str__ __new__ __init__ __class__ __doc__ maketrans".split()) | (
    frozenset(dir(object))
    - frozenset("__eq__ __ne__ __lt__ __le__ __gt__ __ge__ __hash__ __format__".split())
)
for _name in frozenset(dir(str)) - _LEFT | {"__hash__", "__repr__"}:
    _make = _noted if _name in _ASKING else _trimmed if _name in _TRIMMING else _opened
    setattr(SealedText, _name, _make(_name))


@dataclass(eq=False)
class Transcript:
    """How a prompt was read.

    Attributes:
        seal: Of its last text.
        rendered: By the chat template.
        given: What the tokenizer was given, disguised.
    """

    seal: Seal
    rendered: Rendered | None = None
    given: str = ""
