"""Given answers scored by every family, also by those whose caches forget and cannot be cropped."""

import pytest
from test_family_exactness import encoded, families, model, random_plan
from tolerances import CONTROL, gap, of_logprobs, relative_gap
from whole_model import attention_sum, masked_logits

from sgl_engine.passes.scoring import run_scoring_pass

ANSWERS = ("yes", "no, never", "a cat")


@families
@pytest.mark.parametrize("keep_ratio", [0.3, 1.0])
def test_scores_are_those_of_whole_sequences(family: str, keep_ratio: float) -> None:
    """Each answer by itself, whatever was scored before it."""
    vlm, prompt = model(family), encoded(family, "a conversation")
    plan = random_plan(prompt, 1, keep_ratio)
    result = run_scoring_pass(vlm, prompt, ANSWERS, plan=plan)
    for answer, logprobs in zip(ANSWERS, result.token_logprobs, strict=True):
        ids = vlm.processor.tokenizer(answer, add_special_tokens=False)["input_ids"]
        rows = masked_logits(vlm, prompt, ids, layer=1, keep=plan.keep.tolist())[len(prompt) - 1 :]
        logs = rows.log_softmax(dim=-1)
        expected = [
            *logs[range(len(ids)), ids].tolist(),
            float(logs[-1, list(vlm.eos_token_ids)].logsumexp(0)),
        ]
        assert gap(logprobs, expected) < of_logprobs(vlm)
        # The control: the rows before.
        shifted = logs.roll(1, dims=0)[range(len(ids)), ids].tolist()
        assert gap(logprobs[:-1], shifted) > CONTROL * of_logprobs(vlm)


@families
def test_the_map_is_the_best_answers(family: str) -> None:
    vlm, prompt = model(family), encoded(family, "one picture")
    result = run_scoring_pass(vlm, prompt, ANSWERS, guide=True)
    best = vlm.processor.tokenizer(ANSWERS[result.best], add_special_tokens=False)["input_ids"]
    assert result.importance is not None
    expected = attention_sum(vlm, prompt, [*best, 0])  # the last token is never fed back
    assert relative_gap(result.importance.mass, expected) < of_logprobs(vlm)
    fewer = attention_sum(vlm, prompt, best)  # the control: a row fewer
    assert relative_gap(result.importance.mass, fewer) > CONTROL * of_logprobs(vlm)
