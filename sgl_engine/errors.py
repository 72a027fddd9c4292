"""Every error this package raises on purpose.

A message names the value that was wrong, the limit it broke, and what to do about it::

    SGLError
    ├── RequestError                  one request is bad; the engine and other requests are unharmed
    │   ├── ImageError
    │   │   ├── MissingImageError     no image where one is named
    │   │   ├── CorruptImageError     bytes that are not a readable picture
    │   │   ├── UnsupportedImageError a format, or a shape, that is not read here
    │   │   ├── ImageLimitError       too many bytes, pixels (decompression bomb), pages or images
    │   │   ├── UnsafeUrlError        a scheme, host or redirect that the URL policy refuses
    │   │   ├── UnsafePathError       a local path where none is allowed, or outside the allowed folder
    │   │   └── ImageFetchError       the URL is allowed but cannot be downloaded
    │   ├── InvalidRequestError       an empty or contradictory request
    │   ├── PromptTooLongError        prompt longer than the model's context
    │   ├── DeadlineError             the request's deadline has passed; a TimeoutError, so an OSError
    │   └── RequestCancelledError     the caller does not want the answer any more
    ├── ModelError                    a model, or a pair of models, cannot be used
    │   ├── ModelNotFoundError        no such folder or hub id
    │   ├── UnsafeWeightsError        pickled weights only
    │   ├── UnsupportedModelError     an architecture without a family here
    │   ├── ProcessorError            the model's processor cannot be loaded or used
    │   └── IncompatiblePairError     small and large do not see the same visual grid
    ├── EngineError                   the engine cannot take or finish a request, whatever is asked
    │   ├── OverloadedError           too many requests at once
    │   └── EngineClosedError         it was closed
    ├── HostedError                   a hosted model has not answered; the small one has
    │   ├── HostedAccessError         it refuses the key
    │   ├── HostedRequestError        it refuses the request
    │   ├── HostedLimitError          too many requests or tokens for now, after all repetitions
    │   ├── HostedServerError         unreachable, too slow, or failing, after all repetitions
    │   └── HostedAnswerError         an answer that is cut off, or cannot be read
    ├── BudgetSpentError              the caller's own budget for the large model is spent
    └── ConfigError                   a preset, scorer or option that does not exist
"""

from __future__ import annotations

from typing import Any


class SGLError(Exception):
    """Base of all errors of this package.

    Args:
        problem: What is wrong, with the value and the limit, as a sentence.
        remedy: What the caller can do about it, as a sentence.
    """

    def __init__(self, problem: str, *, remedy: str) -> None:
        super().__init__(f"{problem} {remedy}")
        self.problem = problem
        self.remedy = remedy

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle despite the keyword-only argument, so that errors cross process borders."""
        return (_rebuild, (type(self), self.problem, self.remedy))


def _rebuild(kind: type[SGLError], problem: str, remedy: str) -> SGLError:
    return kind(problem, remedy=remedy)


class RequestError(SGLError):
    """One request is bad."""


class ImageError(RequestError):
    """An image of the request cannot be used."""


class MissingImageError(ImageError):
    """No image where one is named."""


class CorruptImageError(ImageError):
    """The bytes are not a readable picture."""


class UnsupportedImageError(ImageError):
    """The picture's format is not read here, or the model takes no picture of its shape."""


class ImageLimitError(ImageError):
    """Too many bytes, pixels, pages or images."""


class UnsafeUrlError(ImageError):
    """The URL policy refuses this scheme, host or redirect."""


class UnsafePathError(ImageError):
    """Local paths are not allowed here, or this one leads out of the allowed folder."""


class ImageFetchError(ImageError):
    """The URL is allowed, but the download failed."""


class InvalidRequestError(RequestError):
    """The request is empty or contradicts itself."""


class PromptTooLongError(RequestError):
    """The prompt does not fit the model's context."""


class DeadlineError(RequestError, TimeoutError):
    """The request's deadline has passed. A ``TimeoutError`` too, as callers of anything slow expect."""


class RequestCancelledError(RequestError):
    """The caller does not want the answer any more."""


class ModelError(SGLError):
    """A model, or a pair of models, cannot be used."""


class ModelNotFoundError(ModelError):
    """There is no such folder or hub id."""


class UnsafeWeightsError(ModelError):
    """The weights are pickled; only safetensors are loaded."""


class UnsupportedModelError(ModelError):
    """No family here knows this architecture."""


class ProcessorError(ModelError):
    """The model's processor cannot be loaded or used."""


class IncompatiblePairError(ModelError):
    """The small model's importance map does not fit the large model's visual tokens."""


class EngineError(SGLError):
    """The engine cannot take or finish this request; nothing is wrong with what is asked."""


class OverloadedError(EngineError):
    """Too many requests are under way."""


class EngineClosedError(EngineError):
    """The engine was closed."""


class HostedError(SGLError):
    """A hosted model has not answered. No message of these holds a key."""


class HostedAccessError(HostedError):
    """The hosted model's server refuses the key."""


class HostedRequestError(HostedError):
    """The hosted model's server refuses the request."""


class HostedLimitError(HostedError):
    """The hosted model's server takes no more requests or tokens for now."""


class HostedServerError(HostedError):
    """The hosted model's server cannot be reached, is too slow, or fails."""


class HostedAnswerError(HostedError):
    """The hosted model's answer was cut off, or cannot be read."""


class BudgetSpentError(SGLError):
    """The caller's own budget for the large model is spent, and the caller asked to be told by an error."""


class ConfigError(SGLError):
    """A preset, scorer or option that does not exist."""
