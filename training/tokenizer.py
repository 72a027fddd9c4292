"""Special tokens, chat template and processor of the bundled pair.

The tokenizer is a small byte-level BPE, uncased, digits single: pictures show a word in either case and
people type either, and any text can be read and written.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, GotOcr2ImageProcessorPil, InternVLProcessor, PreTrainedTokenizerFast

from sgl_engine.demo.drawing import SIZE
from sgl_engine.demo.pages.cells import TOKENS
from sgl_engine.demo.pages.layout import SHAPES
from sgl_engine.families.processors import image_only, obey_thumbnail_switch

PAD, END, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"
IMAGE, IMAGE_START, IMAGE_END = "<IMG_CONTEXT>", "<img>", "</img>"
NAMES = {
    "start_image_token": IMAGE_START,
    "end_image_token": IMAGE_END,
    "context_image_token": IMAGE,
    "video_token": PAD,
}
"""What InternVLProcessor asks its tokenizer for; there are no videos: what no prompt has stands in."""
ROLES = [USER, ASSISTANT, "<|system|>", "<|tool|>"]
# Mean and deviation of the generated pictures, so that paper is near zero and ink far from it.
MEAN, STD = (0.85, 0.85, 0.85), (0.25, 0.25, 0.25)
# The pair learnt with pictures before the text of a turn, so the template puts them there.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}"
    "{{ '<IMG_CONTEXT>' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def build_processor(tokenizer: PreTrainedTokenizerFast) -> Any:
    """An InternVLProcessor that cuts a picture into 1 to 6 tiles of 192 x 192 and adds no thumbnail.

    At 8 pixels to a visual token's side a thumbnail of such a page could not be read.
    """
    images = GotOcr2ImageProcessorPil(
        do_resize=True,
        size={"height": SIZE, "width": SIZE},
        do_normalize=True,
        image_mean=list(MEAN),
        image_std=list(STD),
        crop_to_patches=True,
        min_patches=min(SHAPES),
        max_patches=max(SHAPES),
        use_thumbnail=False,
    )
    processor = image_only(InternVLProcessor)
    return obey_thumbnail_switch(
        processor(images, tokenizer, None, image_seq_length=TOKENS, chat_template=CHAT_TEMPLATE)
    )


def with_names(folder: Path) -> PreTrainedTokenizerFast:
    """The folder's tokenizer, with the names that the processor asks it for."""
    loaded: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(folder, extra_special_tokens=NAMES)
    loaded.padding_side = "left"
    return loaded


def save_processor(tokenizer_folder: Path, folder: Path) -> None:
    """Write tokenizer, chat template and processor beside the weights in ``folder``."""
    tokenizer = with_names(tokenizer_folder)
    processor = build_processor(tokenizer)
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    saved = json.loads(path.read_text())
    saved |= {"extra_special_tokens": ROLES, "processor_class": "InternVLProcessor"}
    path.write_text(json.dumps(saved, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    # save_pretrained of a processor without its video half fails, so its one file is written here.
    settings = {
        "processor_class": "InternVLProcessor",
        "image_seq_length": TOKENS,
        "image_processor": json.loads(processor.image_processor.to_json_string()),
    }
    (folder / "processor_config.json").write_text(json.dumps(settings, indent=1) + "\n")
