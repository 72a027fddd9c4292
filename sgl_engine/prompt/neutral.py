"""The pictures of a request with a question that asks for nothing in them. Pure.

What a model looks at then is due to the pictures and to where they stand in the prompt, and not to what
somebody wants to know (``PruningConfig.neutral``).
"""

from __future__ import annotations

from dataclasses import replace

from sgl_engine.request import Message, Request

NEUTRAL_QUESTION = "what is it"
"""Asks for nothing in particular, in words that any model knows."""


def neutral_request(request: Request) -> Request:
    """Returns a request with the same system prompt, tools and pictures, in order, and the neutral question.

    Where the pictures stand before the question, as usual, both prompts are the same up to their last
    visual token. The rest of a conversation is left out: it asks for something.
    """
    system = (message for message in request.messages if message.role == "system")
    return replace(request, messages=(*system, Message("user", (*request.images, NEUTRAL_QUESTION))))
