from .encoded import (
    MAX_ROWS as MAX_ROWS,
    Box as Box,
    EncodedPrompt as EncodedPrompt,
    PictureAxes as PictureAxes,
    PromptBatch as PromptBatch,
    PromptPart as PromptPart,
    PromptTiles as PromptTiles,
    VisualSpan as VisualSpan,
)
from .folders import at_home as at_home, pictures_in as pictures_in
from .formats import open_picture as open_picture
from .images import load_image as load_image, read_file as read_file, resolve_images as resolve_images
from .neutral import NEUTRAL_QUESTION as NEUTRAL_QUESTION, neutral_request as neutral_request
from .pages import count_pages as count_pages, open_pages as open_pages
from .signatures import mime_type_of as mime_type_of, sniff as sniff
from .sources import (
    decode_base64 as decode_base64,
    decode_data_url as decode_data_url,
    describe_source as describe_source,
    shorten as shorten,
)
