"""Where a repository's small files are: its folder, or the hub, from which only these are fetched."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from sgl_engine.errors import (
    ModelError,
    ModelNotFoundError,
    SGLError,
    UnsafeWeightsError,
    UnsupportedModelError,
)
from sgl_engine.exit import SealedFile, load_sealed
from sgl_engine.model.checks import check_folder
from sgl_engine.model.settings import path_or_name

_SMALL = ("*.json", "*.jinja", "*.txt", "*.model", "*.py")
"""Configuration, processor, tokenizer, template; ``.py`` only matters to ``trust_remote_code``."""
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_SAMPLES, _SAMPLE_BYTES = 32, 16 * 2**10  # a file of up to half a megabyte is read whole


@dataclass(frozen=True)
class SmallFiles:
    """A repository without its weights.

    Attributes:
        name: Path or hub id, as it was given.
        folder: Where the files are.
        revision: Commit on the hub.
        download_bytes: Of the safetensors weights, where that is known.
        problem: What is wrong with the weights, by their names alone.
    """

    name: str
    folder: Path
    revision: str | None = None
    download_bytes: int | None = None
    problem: ModelError | None = None


def find_files(path_or_hub_id: str | Path, *, revision: str | None = None) -> SmallFiles:
    """Finds a model's small files, and fetches them where they are on the hub.

    Args:
        path_or_hub_id: A local folder, which need not hold any weights, or "owner/name" on the hub.
        revision: Branch, tag or commit on the hub.

    Raises:
        ModelNotFoundError: No such folder or hub id, or the hub cannot be reached.
        UnsupportedModelError: It is an adapter to another model.
    """
    name = path_or_name(path_or_hub_id)
    folder = Path(name)
    if folder.is_dir() or not _is_hub_id(name):
        problem = _folder_problem(folder)
        return SmallFiles(name, folder, download_bytes=_local_bytes(folder), problem=problem)
    return _from_hub(name, revision)


def model_identity(path_or_hub_id: str | Path) -> str:
    """Stands for a model's files: its commit on the hub, or a digest of its folder.

    Of large files, size and samples count, so that it takes milliseconds: what was trained again differs
    nearly everywhere.

    Raises:
        ModelNotFoundError: There is no such model.
    """
    files = find_files(path_or_hub_id)
    if files.revision is not None:
        return f"{files.name}@{files.revision}"
    digest = sha256()
    for path in sorted(each for each in files.folder.rglob("*") if each.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(files.folder).as_posix()} {size}\n".encode(errors="replace"))
        with path.open("rb") as file:
            if size <= _SAMPLES * _SAMPLE_BYTES:
                digest.update(file.read())
                continue
            for sample in range(_SAMPLES):
                file.seek(sample * (size - _SAMPLE_BYTES) // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def calibration_bytes(kind: type[SealedFile], path: Path) -> bytes:
    """The bytes of a calibration's file, by which a run is compared with an earlier one.

    Args:
        kind: What it is a file of.
        path: Where it is.

    Raises:
        ConfigError: It cannot be read.
    """
    try:
        return path.expanduser().read_bytes()
    except OSError:
        load_sealed(kind, path)  # raises, with the words of every command that loads one
        raise


def _is_hub_id(name: str) -> bool:
    return not name.startswith((".", "/", "~")) and name.count("/") <= 1 and not Path(name).exists()


def _folder_problem(folder: Path) -> ModelError | None:
    """What is wrong with a folder's weights; that there are none is not wrong here."""
    try:
        check_folder(str(folder))
    except UnsafeWeightsError as error:
        return error
    except ModelNotFoundError:
        if not (folder / "config.json").is_file():
            raise
    return None


def _local_bytes(folder: Path) -> int | None:
    """Bytes of the weights that are there, or that an index names."""
    there = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if there:
        return there
    try:
        index = json.loads((folder / "model.safetensors.index.json").read_bytes())
        return int(index["metadata"]["total_size"])
    except (OSError, ValueError, TypeError, LookupError):
        return None


def _from_hub(name: str, revision: str | None) -> SmallFiles:
    from huggingface_hub import HfApi, snapshot_download

    with _asking(name):
        info = _model_info(HfApi(), name, revision)
        if info is not None and any(file.rfilename == "adapter_config.json" for file in info.siblings):
            raise UnsupportedModelError(
                f"{name} is an adapter (adapter_config.json) to another model.",
                remedy="Merge it first: model.merge_and_unload().save_pretrained(folder).",
            )
        at = revision if info is None else info.sha
        folder = Path(snapshot_download(name, revision=at, allow_patterns=list(_SMALL)))
    if not (folder / "config.json").is_file():
        raise ModelNotFoundError(
            f"{name} has no config.json.", remedy="Give a repository in transformers format."
        )
    if info is None:
        return SmallFiles(name, folder, folder.name, _local_bytes(folder))
    weights = [file for file in info.siblings if file.rfilename.endswith(".safetensors")]
    size = sum(file.size or 0 for file in weights) or None
    return SmallFiles(name, folder, info.sha, size, _weights_problem(name, info.siblings))


@contextmanager
def _asking(name: str) -> Iterator[None]:
    """Raises ModelNotFoundError for what the hub's client raises, of whichever HTTP library."""
    try:
        yield
    except SGLError:
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelNotFoundError(
            f"The files of {name} cannot be fetched ({type(error).__name__}: {reason}).",
            remedy="Check the hub id, the revision and the network; gated models need `hf auth login`.",
        ) from error


def _model_info(api: Any, name: str, revision: str | None) -> Any:
    """What the hub says of the repository; None where it is not asked (HF_HUB_OFFLINE)."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        return api.model_info(name, revision=revision, files_metadata=True)
    except OfflineModeIsEnabled:
        return None


def _weights_problem(name: str, files: Iterable[Any]) -> ModelError | None:
    names = [file.rfilename for file in files]
    if any(each.endswith(".safetensors") for each in names):
        return None
    pickled = [each for each in names if each.endswith(_PICKLED)]
    if pickled:
        return UnsafeWeightsError(
            f"{name} holds pickled weights only ({', '.join(pickled[:3])}); loading can run code.",
            remedy="Use a revision with safetensors weights; pickled ones are never loaded.",
        )
    return ModelNotFoundError(
        f"{name} holds no weights (*.safetensors).", remedy="Use a repository in transformers format."
    )
