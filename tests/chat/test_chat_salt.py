"""Tenants behind one ``ChatSGL``: a salt of their own, as a field, bound, or of a call."""

from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.exceptions import ModelInvalidRequestError
from langchain_core.messages import HumanMessage
from picture_folders import picture

from langchain_sgl import ChatSGL, SGLImageReranker, image_block


def test_calls_of_one_salt_share_what_is_known_and_no_others() -> None:
    shown = picture(64, 48, seed=77)

    def known(chat: Any, **options: Any) -> int:
        message = chat.invoke([HumanMessage([image_block(shown), "What is it?"])], **options)
        return int(message.response_metadata["sgl"]["small_known_pictures"])

    chat = ChatSGL(escalate="never", max_tokens=2)
    assert [known(chat, cache_salt="a"), known(chat, cache_salt="b"), known(chat)] == [0, 0, 0]
    assert [known(chat.bind(cache_salt="a")), known(chat), known(chat, cache_salt="c")] == [1, 1, 0]
    tenant = ChatSGL(escalate="never", max_tokens=2, cache_salt="d")
    assert [known(tenant), known(tenant), known(tenant, cache_salt="a")] == [0, 1, 1]
    with pytest.raises(ModelInvalidRequestError, match="cache_salt"):
        known(chat, cache_salt="")


def test_a_reranker_scores_for_its_tenant() -> None:
    document = Document("", metadata={"image": picture(64, 48, seed=78)})

    def known(model: Any) -> int:
        (ranked,) = SGLImageReranker(model=model).compress_documents([document], "total?")
        return int(ranked.metadata["sgl_relevance"]["small_known_pictures"])

    chat = ChatSGL(escalate="never")
    models = [
        chat.bind(cache_salt="a"),
        chat.bind(cache_salt="b"),
        chat,
        ChatSGL(escalate="never", cache_salt="a"),
    ]
    assert [known(model) for model in models] == [0, 0, 0, 1]
