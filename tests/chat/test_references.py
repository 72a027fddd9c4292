"""Picture references: what they may mean, in which order, and that no path leads out of its folder."""

import base64
from pathlib import Path

import pytest

from langchain_sgl.chat.local_files import resolve_under
from langchain_sgl.tools.picture_store import InMemoryPictureStore, as_picture_store
from langchain_sgl.tools.references import describe_reference, resolve_picture
from sgl_engine.demo import PICTURES
from sgl_engine.errors import ConfigError, MissingImageError, SGLError, UnsafePathError
from sgl_engine.prompt.signatures import mime_type_of

PNG = (PICTURES / "receipt.png").read_bytes()
PNG_BASE64 = base64.b64encode(PNG).decode()
JPEG_BASE64 = base64.b64encode(b"\xff\xd8\xff\xe0" + bytes(range(200))).decode()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with a picture, one deeper, and a secret beside it."""
    folder = tmp_path / "pictures"
    (folder / "may").mkdir(parents=True)
    (folder / "receipt.png").write_bytes(PNG)
    (folder / "may" / "deep.png").write_bytes(PNG)
    (tmp_path / "secret.png").write_bytes(PNG)
    (tmp_path / "pictures-of-others").mkdir()
    (tmp_path / "pictures-of-others" / "secret.png").write_bytes(PNG)
    return folder


@pytest.mark.parametrize("name", ["receipt.png", "./receipt.png", "may/../receipt.png", "may/deep.png"])
def test_files_in_the_folder_are_found(root: Path, name: str) -> None:
    found = resolve_under(root, name)
    assert found.is_absolute()
    assert found == (root / name).resolve()
    assert resolve_under(root, str(found)) == found  # absolute, and inside


@pytest.mark.parametrize(
    "name",
    ["../secret.png", "may/../../secret.png", "/etc/passwd", "..", "../pictures-of-others/secret.png"],
)
def test_paths_that_lead_out_are_refused(root: Path, name: str) -> None:
    with pytest.raises(UnsafePathError, match="leads out of the picture folder 'pictures'"):
        resolve_under(root, name)
    with pytest.raises(UnsafePathError):
        resolve_picture(name, root=root)


def test_links_are_followed_before_they_are_judged(root: Path) -> None:
    (root / "inside.png").symlink_to(root / "may" / "deep.png")
    (root / "outside.png").symlink_to(root.parent / "secret.png")
    (root / "others").symlink_to(root.parent / "pictures-of-others")
    assert resolve_under(root, "inside.png") == (root / "may" / "deep.png").resolve()
    for name in ("outside.png", "others/secret.png"):
        with pytest.raises(UnsafePathError):
            resolve_under(root, name)


def test_the_folder_may_be_a_link_itself(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    assert resolve_under(tmp_path / "link", "receipt.png") == (root / "receipt.png").resolve()


def test_errors_do_not_tell_what_exists_outside(root: Path) -> None:
    errors = []
    for name in ("../secret.png", "../absent.png"):
        with pytest.raises(UnsafePathError) as caught:
            resolve_under(root, name)
        errors.append(str(caught.value).replace(name, "NAME"))
    assert errors[0] == errors[1]
    assert str(root.parent) not in errors[0]


@pytest.mark.parametrize("name", ["absent.png", "", "may", "a\0b", "x" * 5000, "~/receipt.png", "$HOME"])
def test_what_is_no_file_is_missing(root: Path, name: str) -> None:
    with pytest.raises(MissingImageError):
        resolve_under(root, name)


def test_links_in_a_circle_are_missing(root: Path) -> None:
    (root / "a.png").symlink_to(root / "b.png")
    (root / "b.png").symlink_to(root / "a.png")
    with pytest.raises(SGLError):
        resolve_under(root, "a.png")


def test_near_names_are_suggested(root: Path) -> None:
    with pytest.raises(MissingImageError, match=r"no file 'recept\.png'.*Near that name: 'receipt\.png'"):
        resolve_under(root, "recept.png")


@pytest.mark.parametrize("folder", ["absent", "receipt.png"])
def test_a_folder_that_is_none_is_an_error_of_the_set_up(root: Path, folder: str) -> None:
    with pytest.raises(ConfigError, match="does not exist or is not a folder"):
        resolve_under(root / folder, "receipt.png")


def test_the_callers_own_names_win(root: Path) -> None:
    url = "https://example.com/a.png"
    store = InMemoryPictureStore({"receipt.png": b"stored", url: b"cached", "../secret.png": b"named"})
    assert resolve_picture("receipt.png", root=root, store=store) == b"stored"
    assert resolve_picture(url, root=root, store=store) == b"cached"
    assert resolve_picture("../secret.png", root=root, store=store) == b"named"
    assert resolve_picture("may/deep.png", root=root, store=store) == root.resolve() / "may" / "deep.png"


@pytest.mark.parametrize(
    "url", ["https://example.com/a.png", "http://x", "HTTPS://X/y", "data:image/png;base64,AA"]
)
def test_urls_are_left_to_the_engine(root: Path, url: str) -> None:
    assert resolve_picture(f"  {url}\n", root=root) == url


def test_bare_base64_is_known_by_its_picture(root: Path) -> None:
    wrapped = "\n".join(PNG_BASE64[i : i + 76] for i in range(0, len(PNG_BASE64), 76))
    assert resolve_picture(PNG_BASE64) == PNG
    assert resolve_picture(wrapped, root=root) == PNG
    assert JPEG_BASE64.startswith("/9j/")  # as an absolute path would
    assert resolve_picture(JPEG_BASE64, root=root) == base64.b64decode(JPEG_BASE64)


@pytest.mark.parametrize("text", [base64.b64encode(b"no picture" * 20).decode(), PNG_BASE64[:32], "%" * 100])
def test_other_text_is_no_base64_picture(text: str) -> None:
    with pytest.raises(MissingImageError):
        resolve_picture(text)


def test_an_unknown_reference_learns_what_is_accepted(root: Path) -> None:
    store = as_picture_store({"invoice-7": PNG, "scan": PNG})
    with pytest.raises(MissingImageError) as caught:
        resolve_picture("invoice-8", root=root, store=store)
    message = str(caught.value)
    assert "no picture 'invoice-8'" in message
    assert "Near that name: 'invoice-7'." in message
    assert "an id of the picture store (it holds 'invoice-7', 'scan')" in message
    assert "a file name in the folder 'pictures'" in message
    assert "an https URL, base64 data." in message
    assert "not read" not in message


def test_without_a_folder_no_file_is_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    for name in ("receipt.png", str(root / "receipt.png"), f"file://{root}/receipt.png"):
        with pytest.raises(MissingImageError, match="Local files are not read here"):
            resolve_picture(name)


def test_many_ids_are_not_all_listed() -> None:
    store = InMemoryPictureStore({f"scan-{index}": PNG for index in range(500)})
    with pytest.raises(MissingImageError) as caught:
        resolve_picture("page", store=store)
    assert "'scan-7', ...)" in str(caught.value)
    assert len(str(caught.value)) < 400


def test_references_are_kept_without_their_data() -> None:
    assert describe_reference(" receipt.png ") == "receipt.png"
    assert describe_reference("https://example.com/a.png") == "https://example.com/a.png"
    kept = {
        describe_reference(text) for text in (PNG_BASE64, f"data:image/png;base64,{PNG_BASE64}", "x" * 9999)
    }
    assert len(kept) == 3
    assert all(len(text) < 80 and "sha256" in text for text in kept)
    assert describe_reference(PNG_BASE64) == describe_reference(PNG_BASE64)


def test_pictures_are_told_by_their_first_bytes() -> None:
    assert mime_type_of(PNG) == "image/png"
    assert mime_type_of(b"RIFF\0\0\0\0WEBPVP8 ") == "image/webp"
    assert mime_type_of(b"RIFF\0\0\0\0WAVEfmt ") is None
    assert mime_type_of(b"<svg>") is None
