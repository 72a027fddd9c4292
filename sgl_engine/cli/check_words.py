"""How ``sgl check`` writes what was found."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from sgl_engine import PairCheck
from sgl_engine.cli.output import flops
from sgl_engine.planning import CascadeCheck, ModelCheck, Placement

_UNKNOWN = "?"


def model_rows(found: PairCheck) -> Iterator[tuple[str, str, str]]:
    """A label, and what it is of the small and the large model."""
    one, other = (dict(_of(model, found.answer_tokens)) for model in (found.small, found.large))
    for label in dict.fromkeys((*one, *other)):
        yield label, one.get(label, _UNKNOWN), other.get(label, _UNKNOWN)


def remarks(found: PairCheck) -> Iterator[str]:
    """What is wrong, and what is worth knowing; once where it is true of both models."""
    for line in dict.fromkeys((*found.small.notes, *found.large.notes)):
        models = [model.name for model in (found.small, found.large) if line in model.notes]
        yield line if len(models) == 2 else f"{models[0]}: {line}"
    for model in (found.small, found.large):
        if model.problem is not None:
            yield f"{model.name}: {model.problem}"
    if found.problem is not None:
        yield found.problem


def _of(model: ModelCheck, answer_tokens: int) -> Iterator[tuple[str, str]]:
    yield "model", model.name + (f"\n({model.revision[:10]})" if model.revision else "")
    yield "runs", "yes" if model.runs else "no"
    if model.architecture is not None:
        attention = f", {model.attention} attention" if model.attention else ""
        yield "architecture", f"{model.architecture} (family {model.family}{attention})"
    if model.parameters is not None:
        yield "parameters", _count(model.parameters)
    if model.download_bytes is not None:
        yield "weights on disk", size(model.download_bytes)
    if model.weights_bytes is not None:
        yield "weights in memory", _by_dtype(model.weights_bytes)
    if model.page_tokens is not None:
        tiles = f" in {model.page_tiles} tiles" if model.page_tiles != 1 else ""
        yield "the page", f"{model.page_tokens:,} visual tokens{tiles}"
        yield "prompt", f"{model.prompt_tokens:,} tokens of {model.context_tokens or 0:,}"
    if model.cache_bytes is not None:
        yield f"cache, answer of {answer_tokens}", _by_dtype(model.cache_bytes)


def cascade_table(cascade: CascadeCheck) -> Table:
    """What a cascade saves, by preset and by how often it escalates."""
    table = Table(
        title=f"operations small : large {flops(cascade.small_tflops)} : {flops(cascade.large_alone_tflops)} "
        f"({cascade.cost_ratio:.0%}); saved, where escalated",
        title_justify="left",
        box=None,
        padding=(0, 2, 0, 0),
        pad_edge=False,
    )
    table.add_column("retention", style="dim")
    rates = [saving.escalated_fraction for saving in cascade.presets[0].savings]
    for name in (*(f"{rate:.0%}" for rate in rates), "visual tokens kept", "from layer"):
        table.add_column(name, justify="right")
    for preset in cascade.presets:
        table.add_row(
            preset.retention,
            *(f"{saving.saved_fraction:.0%}" for saving in preset.savings),
            f"{preset.kept_visual_tokens:,}",
            str(preset.layer),
        )
    return table


def placement_rows(placement: Placement) -> Iterator[tuple[str, str]]:
    """What the machine is, and how the pair fits on it."""
    yield "this machine", ", ".join(placement.devices)
    needed, available = size(placement.needed_bytes), size(placement.available_bytes)
    yield (
        "fits" if placement.fits else "does not fit",
        (f"{placement.reason}; takes about {needed} of {available}"),
    )
    if placement.missing:
        yield "install first", " ".join(placement.missing)


def size(count: int) -> str:
    """Bytes, as a person reads them."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**29 else f"{count / 2**20:.1f} MiB"


def _count(values: int) -> str:
    return f"{values / 1e9:.2f} billion" if values >= 1e9 else f"{values / 1e6:.1f} million"


def _by_dtype(sizes: dict[str, int]) -> str:
    """Each size once, with the dtypes that have it."""
    names: dict[int, list[str]] = {}
    for name, count in sizes.items():
        names.setdefault(count, []).append(name.replace("float16", "16").replace("bfloat16", "16"))
    merged = {count: "16 bit" if "16" in each or "b16" in each else each[0] for count, each in names.items()}
    return "\n".join(f"{size(count)} {name}" for count, name in merged.items())
