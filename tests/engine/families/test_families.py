import pytest
import torch
from samples import REQUESTS

from sgl_engine import VLM
from sgl_engine.families.internvl import InternVL
from sgl_engine.report.cost import token_flops
from sgl_engine.testing import tiny_vlm


def test_visual_tokens_are_row_major_after_merging() -> None:
    """A pixel shuffle of coordinates shows which patches a token holds."""
    vlm = tiny_vlm(side_tokens=3)
    rows, cols = torch.meshgrid(torch.arange(6), torch.arange(6), indexing="ij")
    coordinates = torch.stack((rows, cols), dim=-1)[None].float()  # (1, 6, 6, 2)
    merged = vlm.model.model.pixel_shuffle(coordinates, scale_factor=0.5).reshape(9, 4, 2)
    for token, patches in enumerate(merged):
        assert set((patches // 2)[:, 0].tolist()) == {token // 3}
        assert set((patches // 2)[:, 1].tolist()) == {token % 3}


@pytest.mark.parametrize("decoder", ["qwen2", "qwen3"])
def test_shapes_follow_the_configuration(decoder: str) -> None:
    vlm: VLM = tiny_vlm(size="large", decoder=decoder, side_tokens=5)
    parameters = dict(vlm.model.named_parameters())
    shape = vlm.shape
    matrices = [
        value.numel()
        for name, value in parameters.items()
        if "language_model.layers.0." in name and value.ndim == 2
    ]
    assert token_flops(shape.decoder) == 2 * sum(matrices)
    assert shape.decoder.layers == vlm.num_layers == 6
    prompt = vlm.encode(REQUESTS["one image"])
    assert vlm.tower_patches(prompt) == (100,)
    assert [span.grid for span in prompt.spans] == [(5, 5)]


def test_a_generated_image_token_is_text() -> None:
    vlm = tiny_vlm()
    token = torch.tensor([vlm.config.image_token_id])
    assert torch.equal(vlm.embed_tokens(token)[0], vlm.model.get_input_embeddings()(token))


class CroppingProcessor:
    """What `tile_boxes` reads of a processor that crops the centre."""

    def __init__(self, size: dict[str, int], *, do_resize: bool = True) -> None:
        self.image_processor = self
        self.do_center_crop = True
        self.do_resize = do_resize
        self.size = size
        self.crop_size = {"height": 100, "width": 100}


@pytest.mark.parametrize(
    ("processor", "box"),
    [
        (CroppingProcessor({"shortest_edge": 100}), (0.25, 0.0, 0.75, 1.0)),
        (CroppingProcessor({"shortest_edge": 200}), (0.375, 0.25, 0.625, 0.75)),
        (CroppingProcessor({"height": 100, "width": 100}), (0.0, 0.0, 1.0, 1.0)),
        (CroppingProcessor({"shortest_edge": 1}, do_resize=False), (0.375, 0.25, 0.625, 0.75)),
        (CroppingProcessor({"shortest_edge": 50}), (0.0, 0.0, 1.0, 1.0)),
    ],
)
def test_centre_crops(processor: CroppingProcessor, box: tuple[float, ...]) -> None:
    assert InternVL().tile_boxes(processor, width=400, height=200) == (box,)
