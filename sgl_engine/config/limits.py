"""What a request may bring, and which URLs are fetched."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, Field

ImageFormat: TypeAlias = Literal[
    "PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "HEIF", "PDF", "ICO", "TGA", "QOI"
]
Pages: TypeAlias = Literal["refuse", "first", "all"]


class UrlPolicy(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Which image URLs are fetched. The default cannot reach anything inside the caller's network.

    Attributes:
        enabled: False refuses every remote URL.
        schemes: Allowed schemes.
        allow_private: True also allows private, loopback, link-local and reserved addresses; metadata
            services of clouds, which give out credentials, are refused all the same.
        max_redirects: Each hop is checked like the first URL.
        timeout_s: Seconds for the whole download.
    """

    enabled: bool = True
    schemes: tuple[str, ...] = ("https",)
    allow_private: bool = False
    max_redirects: Annotated[int, Field(ge=0)] = 3
    timeout_s: Annotated[float, Field(gt=0.0)] = 10.0


class LimitsConfig(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """What a request may bring.

    Attributes:
        max_image_bytes: Encoded size of one image.
        max_image_pixels: Width times height of one image; larger ones are refused before they are decoded.
        max_request_pixels: The same of all images of a request together, pages included.
        max_image_side: Width and height of one image.
        exact_image_pixels: An image of so many pixels reaches the processor as it is. A larger one may be
            scaled down while it is read, by a whole factor, as far as the processor would scale it down
            anyway: to the same tokens, in a fraction of the time and the memory.
        max_images: Images per request, pages included.
        image_formats: Decoders that run, by Pillow's names; no other ever sees the bytes. HEIF needs
            pillow-heif, PDF needs pypdfium2, AVIF and JPEG2000 a Pillow that was built with them.
        pages: What becomes of a file that holds several pictures (TIFF, PDF, an animation): "refuse" is an
            error, "first" reads the first page and drops the others, "all" makes every page an image.
        pdf_dpi: Resolution at which pages of a PDF are drawn.
        max_schema_chars: All schemas of a request, those of its tools too, written as JSON.
        max_schema_s: Seconds of computing that compiling them may take; the request's deadline counts too.
        max_pattern_chars: One ``pattern`` of a schema.
        max_pattern_size: The same, with every repetition written out as often as it may be: 30 for
            ``(a{3}){10}``.
        schema_process: Whether schemas are compiled in a process of their own first. False saves the 0.1 s
            that a new one costs; then ``max_schema_s`` means nothing, and a schema made for it holds its
            request up for minutes. For callers who write all schemas themselves.
        max_text_chars: All texts of a request, descriptions of its tools too. What fits the model's context
            is less, and is looked at besides.
        max_stop_strings: Strings in ``Request.stop``.
        max_stop_chars: One of them.
        urls: The URL policy.
    """

    max_image_bytes: Annotated[int, Field(ge=1)] = 20 * 2**20
    max_image_pixels: Annotated[int, Field(ge=1)] = 50_000_000
    max_request_pixels: Annotated[int, Field(ge=1)] = 100_000_000
    max_image_side: Annotated[int, Field(ge=1)] = 32_768
    exact_image_pixels: Annotated[int, Field(ge=0)] = 4_000_000
    max_images: Annotated[int, Field(ge=0)] = 32
    image_formats: Annotated[tuple[ImageFormat, ...], Field(min_length=1)] = (
        *("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "HEIF", "PDF"),
    )
    pages: Pages = "refuse"
    pdf_dpi: Annotated[float, Field(gt=0.0, le=1200.0)] = 144.0
    max_schema_chars: Annotated[int, Field(ge=1)] = 65_536
    max_schema_s: Annotated[float, Field(gt=0.0)] = 2.0
    max_pattern_chars: Annotated[int, Field(ge=0)] = 1_000
    max_pattern_size: Annotated[int, Field(ge=0)] = 5_000
    schema_process: bool = True
    max_text_chars: Annotated[int, Field(ge=1)] = 4_000_000
    max_stop_strings: Annotated[int, Field(ge=0)] = 64
    max_stop_chars: Annotated[int, Field(ge=1)] = 1_000
    urls: UrlPolicy = UrlPolicy()
