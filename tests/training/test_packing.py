"""A packed row equals as many separate conversations: training must teach what inference asks."""

import torch
from tolerances import CONTROL, gap, rounding

from training.attention import packed, use_packed_attention
from training.models import build_model, grow, grow_both
from training.packing import LAYOUTS, Packer
from training.tokenizer import ASSISTANT, END, USER, train_tokenizer

torch.manual_seed(0)


def test_packed_rows_equal_separate_conversations() -> None:
    tokenizer = train_tokenizer()
    packer = Packer(tokenizer)
    model = build_model("small", tokenizer).eval()
    for layout, (slots, length, _) in enumerate(LAYOUTS):
        batch = packer.batch(3, 2, layout=layout)
        features = model.model.get_image_features(batch.pixels, return_dict=True).pooler_output
        embeddings = model.get_input_embeddings()(batch.ids)
        is_image = (batch.ids == model.config.image_token_id)[..., None]
        embeddings = embeddings.masked_scatter(is_image, features).detach()
        plain = model.config.text_config._attn_implementation
        use_packed_attention(model)
        with torch.no_grad(), packed(batch.prefix, batch.slots):
            together = model.model.language_model(
                inputs_embeds=embeddings, position_ids=batch.positions, use_cache=False
            ).last_hidden_state[:, batch.prefix :]
        model.model.language_model.config._attn_implementation = plain
        for slot in (0, slots - 1):
            own = slice(slot * length, (slot + 1) * length)
            alone = torch.cat([embeddings[:, : batch.prefix], embeddings[:, batch.prefix :][:, own]], dim=1)
            with torch.no_grad():
                expected = model.model.language_model(inputs_embeds=alone, use_cache=False).last_hidden_state
            within = rounding(len(model.model.language_model.layers)) * float(expected.abs().max())
            assert gap(together[:, own], expected[:, batch.prefix :]) < within
            # The control: with the neighbour's tokens in the slot, the rows must differ.
            other = alone.roll(1, dims=0)
            with torch.no_grad():
                wrong = model.model.language_model(inputs_embeds=other, use_cache=False).last_hidden_state
            assert gap(together[:, own], wrong[:, batch.prefix :]) > CONTROL * within


def test_every_answer_is_asked_for_once_and_ends() -> None:
    tokenizer = train_tokenizer()
    packer = Packer(tokenizer)
    end, user, assistant = tokenizer.convert_tokens_to_ids([END, USER, ASSISTANT])
    for layout in range(len(LAYOUTS)):
        batch = packer.batch(11, 4, layout=layout)
        asked = torch.zeros_like(batch.labels, dtype=torch.bool)
        for row, first, stop in batch.answers:
            assert batch.ids[row, batch.prefix + first] == assistant
            assert batch.labels[row, stop - 1] == end
            # What should come next is what stands next in the row, up to the end of the answer.
            following = batch.ids[row, batch.prefix + first + 1 : batch.prefix + stop]
            assert torch.equal(batch.labels[row, first : stop - 1], following)
            asked[row, first:stop] = True
        assert torch.equal(asked, batch.labels >= 0)
        assert (batch.ids == user).sum() >= len(batch.ids)


def test_growing_changes_nothing() -> None:
    tokenizer = train_tokenizer()
    model = build_model("large", tokenizer).eval()
    grown = grow(model).eval()
    assert len(grown.model.language_model.layers) == 2 * len(model.model.language_model.layers)
    rows = torch.randn(1, 9, model.config.text_config.hidden_size)
    with torch.no_grad():
        before = model.model.language_model(inputs_embeds=rows).last_hidden_state
        after = grown.model.language_model(inputs_embeds=rows).last_hidden_state
    assert gap(after, before) <= rounding(len(grown.model.language_model.layers)) * float(before.abs().max())


def test_the_large_model_starts_as_the_small_one() -> None:
    tokenizer = train_tokenizer()
    small, large = build_model("small", tokenizer).eval(), build_model("large", tokenizer).eval()
    batch = Packer(tokenizer).batch(5, 2, layout=0)
    inputs = {"input_ids": batch.ids[:, : batch.prefix + 12], "pixel_values": batch.pixels}
    with torch.no_grad():
        expected = small(**inputs).logits
        large.load_state_dict(grow_both(small.state_dict()))
        within = rounding(len(large.model.language_model.layers)) * float(expected.abs().max())
        assert gap(large(**inputs).logits, expected) < within
        # The control: with one copied layer no longer silent, the function changes.
        layer = large.model.language_model.layers[0]
        layer.mlp.down_proj.weight.copy_(large.model.language_model.layers[1].mlp.down_proj.weight)
        assert gap(large(**inputs).logits, expected) > CONTROL * within
