"""More words for the pair's tokenizer: new merges behind the old ones, so that old words stay as they are.

What has to be found on a page by its name is learnt fastest where the name is one token.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoTokenizer, InternVLForConditionalGeneration, PreTrainedTokenizerFast

from sgl_engine.demo.pages.scenes import PLURALS
from sgl_engine.demo.pages.stock import NOTES, RECEIPTS

WORDS = (
    *RECEIPTS,
    *NOTES,
    *PLURALS.values(),
    *"form chart scene document where there upper lower middle date sum row column says has and than".split(),
    *"higher in".split(),
)
PADDING = 64
"""The embedding has a multiple of so many rows."""


def extend(folder: Path, target: Path, words: Sequence[str] = WORDS) -> PreTrainedTokenizerFast:
    """Write the folder's tokenizer to ``target`` with each of the words as one token; return it."""
    PreTrainedTokenizerFast.from_pretrained(folder).save_pretrained(target)
    for word in words:
        path = target / "tokenizer.json"
        content = json.loads(path.read_text())
        pieces = PreTrainedTokenizerFast.from_pretrained(target).tokenize(word)
        vocabulary, merges = content["model"]["vocab"], content["model"]["merges"]
        start = max(*vocabulary.values(), *(token["id"] for token in content["added_tokens"])) + 1
        whole = pieces[0]
        for piece in pieces[1:]:
            merges.append([whole, piece])
            whole += piece
            if whole not in vocabulary:
                vocabulary[whole] = start
                start += 1
        path.write_text(json.dumps(content, ensure_ascii=False))
    loaded: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(target)
    return loaded


def widen_embedding(
    model: InternVLForConditionalGeneration, old: PreTrainedTokenizerFast, new: PreTrainedTokenizerFast
) -> None:
    """Give the model rows for the new tokens: each starts as the mean of the old tokens of its text."""
    rows = model.get_input_embeddings().weight.detach().clone()
    model.resize_token_embeddings(-(-len(new) // PADDING) * PADDING, mean_resizing=False)
    table = model.get_input_embeddings().weight
    with torch.no_grad():
        for index in range(len(old), len(new)):
            text = new.convert_tokens_to_string([new.convert_ids_to_tokens(index)])
            pieces = old(text.strip()).input_ids
            table[index] = rows[pieces].mean(0)
