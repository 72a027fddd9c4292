"""The tokenizer and processor of the bundled pair: a small byte-level BPE, uncased, digits single.

Uncased, because pictures show a word in either case and people type either; byte-level, so that any text
can be read and written.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

from sgl_engine.demo.drawing import PATCH, SIZE
from sgl_engine.demo.generator import draw_sample
from sgl_engine.demo.vocabulary import BARS, COLORS, FIELDS, ITEMS, SHAPES

VOCABULARY = 768
PAD, END, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"
IMAGE, IMAGE_START, IMAGE_END = "<IMG_CONTEXT>", "<img>", "</img>"
SPECIAL = (PAD, END, USER, ASSISTANT, "<|system|>", "<|tool|>", IMAGE_START, IMAGE_END, IMAGE)
# Mean and deviation of the generated pictures, so that paper is near zero and ink far from it.
MEAN, STD = (0.85, 0.85, 0.85), (0.25, 0.25, 0.25)
# The pair learnt with pictures before the text of a turn, so the template puts them there.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}"
    "{{ '<img><IMG_CONTEXT></img>' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Learn the merges from generated training questions; deterministic."""
    tokenizer = Tokenizer(models.BPE())
    # A space before every text makes a word one token wherever it stands: what is learnt by answering "milk"
    # then helps to look for "milk". A digit takes the space before it along, for the same reason.
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Prepend(" ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r" ?\d"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[token for token in SPECIAL if token not in (PAD, END)],
        chat_template=CHAT_TEMPLATE,
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )


def _corpus() -> list[str]:
    lines = []
    for seed in range(600):
        for question in draw_sample(seed, split="train").questions:
            lines += [question.text, question.answer]
    # Every word of the world becomes one token.
    return lines + [*ITEMS, *FIELDS, *BARS, *COLORS, *SHAPES, "none", "yes", "no"] * 300


def build_processor(tokenizer: PreTrainedTokenizerFast, *, patch: int = PATCH) -> LlavaProcessor:
    """A processor for 192 x 192 pictures, one visual token a patch; loads with or without torchvision."""
    image_processor = CLIPImageProcessorPil(
        do_resize=True,
        size={"height": SIZE, "width": SIZE},
        do_center_crop=False,
        do_normalize=True,
        image_mean=list(MEAN),
        image_std=list(STD),
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        image_token=IMAGE,
        chat_template=CHAT_TEMPLATE,
    )


def load_or_train(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer in ``folder``, learnt and saved there if it is missing."""
    if not (folder / "tokenizer.json").exists():
        train_tokenizer().save_pretrained(folder)
    loaded: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
    return loaded
