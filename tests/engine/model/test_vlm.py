import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from samples import REQUESTS, noise

from sgl_engine import VLM, Message, Request
from sgl_engine.errors import (
    ConfigError,
    InvalidRequestError,
    ModelError,
    ModelNotFoundError,
    ProcessorError,
    PromptTooLongError,
    UnsafeWeightsError,
    UnsupportedModelError,
)
from sgl_engine.prompt.encoded import EncodedPrompt
from sgl_engine.testing import tiny_vlm

Case = tuple[VLM, EncodedPrompt]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    save(tiny_vlm(), path)
    return path


def save(vlm: VLM, path: Path) -> None:
    vlm.model.save_pretrained(path)
    vlm.processor.save_pretrained(path)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_embedding_then_decoding_is_the_models_own_forward(case: Case, implementation: str) -> None:
    vlm, prompt = case
    vlm.model.set_attn_implementation(implementation)
    with torch.no_grad():
        expected = vlm.model(**prompt.inputs).logits[0]
    got = vlm.forward(vlm.embed(prompt), prompt=prompt, first_position=0, cache=None, logit_rows=len(prompt))
    assert torch.equal(got, expected)


def test_spans_are_the_image_tokens(case: Case) -> None:
    vlm, prompt = case
    ids = prompt.input_ids[0].tolist()
    expected = [position for position, token in enumerate(ids) if token == vlm.config.image_token_id]
    assert list(prompt.visual_positions) == expected
    assert prompt.num_visual_tokens == len(expected)
    assert all(len(span) == span.grid[0] * span.grid[1] == 16 for span in prompt.spans)


def test_raw_inputs_give_the_same_prompt(case: Case) -> None:
    vlm, prompt = case
    raw = vlm.prompt(prompt.inputs)
    assert [(span.image, span.start, span.stop, span.grid) for span in raw.spans] == [
        (span.image, span.start, span.stop, span.grid) for span in prompt.spans
    ]
    tiled = {
        span.image for span in prompt.spans if len([s for s in prompt.spans if s.image == span.image]) > 1
    }
    assert all((span.box is None) == (span.image in tiled) for span in raw.spans)


def test_a_saved_model_answers_the_same(folder: Path) -> None:
    loaded, original = VLM.from_pretrained(folder, dtype=torch.float32, device="cpu"), tiny_vlm()
    assert loaded.name == str(folder)
    assert loaded.revision is None
    request = REQUESTS["one image"]
    ours, theirs = (vlm.embed(vlm.encode(request)) for vlm in (loaded, original))
    assert torch.equal(ours, theirs)
    assert loaded.eos_token_ids == original.eos_token_ids


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no model folder .*nowhere.*hub id"):
        VLM.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ModelNotFoundError, match=r"no config\.json"):
        VLM.from_pretrained(tmp_path)


def test_a_hub_id_that_cannot_be_reached() -> None:
    with pytest.raises(ModelNotFoundError, match="nobody/nothing.*network"):
        VLM.from_pretrained("nobody/nothing")


def test_pickled_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(ModelNotFoundError, match="no weights"):
        VLM.from_pretrained(tmp_path)
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UnsafeWeightsError, match=r"pytorch_model\.bin.*save_pretrained"):
        VLM.from_pretrained(tmp_path)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A saved model that a test may damage."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.mark.parametrize("kept", [b"version https://git-lfs.github.com/spec/v1\n", None])
def test_weights_that_are_not_whole(copy: Path, kept: bytes | None) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(kept or weights.read_bytes()[:-1000])
    with pytest.raises(ModelNotFoundError, match="not whole safetensors files .*Download them again"):
        VLM.from_pretrained(copy)


def test_weights_that_are_incomplete(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    name = min(tensors)
    del tensors[name]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelNotFoundError, match=r"lack 1 of the model's tensors \(.*\).*would be random"):
        VLM.from_pretrained(copy)


def test_weights_of_another_shape(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    name = min(tensors)
    tensors[name] = torch.zeros(3, 3)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnsupportedModelError, match="cannot be loaded as configured .*fit each other"):
        VLM.from_pretrained(copy)


@pytest.mark.parametrize("error", [ValueError, RuntimeError, ImportError])
def test_what_transformers_refuses(
    monkeypatch: pytest.MonkeyPatch, folder: Path, error: type[Exception]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error("Using a `device_map` requires `accelerate`.")

    monkeypatch.setattr(transformers.AutoModelForImageTextToText, "from_pretrained", refuse)
    with pytest.raises(ModelError, match="requires `accelerate`"):
        VLM.from_pretrained(folder, device_map="auto")


def test_running_out_of_memory_does_not_blame_the_model(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(transformers.AutoModelForImageTextToText, "from_pretrained", refuse)
    with pytest.raises(torch.OutOfMemoryError):
        VLM.from_pretrained(folder)


def test_device_and_device_map_exclude_each_other(folder: Path) -> None:
    with pytest.raises(ConfigError, match="device='cpu' and device_map='auto'"):
        VLM.from_pretrained(folder, device="cpu", device_map="auto")


def test_image_tokens_and_features_must_match() -> None:
    vlm = tiny_vlm()
    prompt = vlm.encode(REQUESTS["one image"])
    pixels = prompt.inputs["pixel_values"]
    surplus = {**prompt.inputs, "pixel_values": torch.cat((pixels, pixels))}
    with pytest.raises(InvalidRequestError, match="16 image tokens, but its images give 32"):
        vlm.embed(replace(prompt, inputs=surplus))
    with pytest.raises(InvalidRequestError, match="16 image tokens, but its images give 0"):
        vlm.embed(vlm.prompt({"input_ids": prompt.input_ids}))


def test_an_unsupported_architecture(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(
        UnsupportedModelError, match="architecture 'gpt2', and it is not .*; supported: .*internvl.*-hf"
    ):
        VLM.from_pretrained(tmp_path)


def test_an_unknown_architecture(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "made_up"}))
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UnsupportedModelError, match="made_up"):
        VLM.from_pretrained(tmp_path)


def test_mixed_decoder_layers_are_refused() -> None:
    vlm = tiny_vlm()
    vlm.config.text_config.layer_types = ["full_attention", "indexed_attention", "full_attention"]
    with pytest.raises(UnsupportedModelError, match="indexed_attention"):
        VLM(vlm.model, vlm.processor, name="mixed")


def test_a_folder_without_a_processor(folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(ProcessorError, match="save_pretrained"):
        VLM.from_pretrained(tmp_path)


def test_a_prompt_longer_than_the_context() -> None:
    vlm = tiny_vlm(context_tokens=60)
    with pytest.raises(PromptTooLongError, match="72 tokens; the context of .* is 60"):
        vlm.encode(Request.ask("x" * 34, noise(8, 8)))
    assert len(vlm.encode(Request.ask("x" * 21, noise(8, 8)))) == 59


def test_batches_and_padding_are_refused() -> None:
    vlm = tiny_vlm()
    ids = torch.zeros(2, 4, dtype=torch.int64)
    with pytest.raises(InvalidRequestError, match="2 prompts"):
        vlm.prompt({"input_ids": ids})
    with pytest.raises(InvalidRequestError, match="1 prompts with padding"):
        vlm.prompt({"input_ids": ids[:1], "attention_mask": torch.tensor([[0, 1, 1, 1]])})


def test_image_tokens_that_do_not_fit() -> None:
    vlm = tiny_vlm()
    ids = torch.zeros(1, 40, dtype=torch.int64)
    ids[0, 3:18] = vlm.config.image_token_id  # 15 of 16
    with pytest.raises(ProcessorError, match="15 image tokens are not those of 1 images in 1 tiles of 4 x 4"):
        vlm.prompt({"input_ids": ids})
    ids[0, 3:19] = vlm.config.image_token_id
    with pytest.raises(ProcessorError, match="16 image tokens are not those of 2 images in 2 tiles"):
        vlm.prompt({"input_ids": ids}, image_sizes=[(8, 8), (8, 8)])


def test_text_cannot_pretend_to_be_an_image() -> None:
    vlm = tiny_vlm()
    told = vlm.encode(Request.ask("look: <IMG_CONTEXT>", noise(8, 8)))
    assert told.num_visual_tokens == vlm.encode(Request.ask("look", noise(8, 8))).num_visual_tokens
    assert "<IMG_CONTEXT>" in vlm.processor.tokenizer.decode(told.input_ids[0].tolist()).split("look: ")[1]


def test_conversations_are_encoded_in_order() -> None:
    vlm = tiny_vlm()
    messages = (Message("system", ("Be brief.",)), Message("user", ("Hi",)), Message("assistant", ("Yes?",)))
    ids = vlm.encode(Request((*messages, Message("user", ("Why?",))))).input_ids[0].tolist()
    assert vlm.processor.tokenizer.decode(ids) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nYes?<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_end_of_sequence_tokens_are_the_models_and_the_tokenizers() -> None:
    vlm = tiny_vlm()
    own = vlm.processor.tokenizer.eos_token_id
    for value, expected in ((7, {7, own}), ([7, 9], {7, 9, own}), (None, {own})):
        vlm.model.generation_config.eos_token_id = value
        assert vlm.eos_token_ids == expected
    vlm.processor.tokenizer.eos_token = None
    assert vlm.eos_token_ids == frozenset()


@pytest.mark.parametrize("device", ["cuda:99", "bogus"])
def test_devices_that_are_not_there(folder: Path, device: str) -> None:
    with pytest.raises(ConfigError, match=device):
        VLM.from_pretrained(folder, device=device)
