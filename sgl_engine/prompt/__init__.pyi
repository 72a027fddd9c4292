from .batch import MAX_ROWS as MAX_ROWS, PromptBatch as PromptBatch
from .encoded import (
    Box as Box,
    EncodedPrompt as EncodedPrompt,
    PictureAxes as PictureAxes,
    VisualSpan as VisualSpan,
)
from .images import (
    FORMATS as FORMATS,
    load_image as load_image,
    read_file as read_file,
    resolve_images as resolve_images,
)
