"""The README's Python runs, block by block, as a newcomer would type it."""

import re
from pathlib import Path

import pytest

from sgl_engine.demo import PICTURES, WEIGHTS
from sgl_engine.demo.loopback import serve

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
FROM_THE_HUB = "OpenGVLab/"


def test_there_are_blocks_to_run() -> None:
    assert len([block for block in BLOCKS if FROM_THE_HUB not in block]) >= 2


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_block_runs(block: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = compile(block, str(README), "exec")
    if FROM_THE_HUB in block:
        pytest.skip("names models on the hub, which tests cannot reach; it compiles")
    exec(code, {"__name__": "readme"})  # that is the test
    assert capsys.readouterr().out.strip()


def test_the_prefix_cache_helps_in_its_own_example(capsys: pytest.CaptureFixture[str]) -> None:
    """The default of ``min_prefix_tokens`` is below the README's prompts, and what is printed shows it."""
    [block] = [block for block in BLOCKS if "cache_info" in block]
    exec(block, {"__name__": "readme"})
    info = re.search(r"prefix_hits=(\d+), prefix_misses=(\d+)", capsys.readouterr().out)
    assert info is not None
    hits, misses = map(int, info.groups())
    # Two questions side by side compute the picture's prefix once; the third one finds it.
    assert (hits, misses) == (1, 1)


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_the_block_on_hosted_models_runs_with_the_bundled_ones_in_their_places(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(PICTURES)
    [block] = [block for block in BLOCKS if "https://host/v1" in block]
    with serve() as server:
        ours = {
            "OpenGVLab/InternVL3-1B-hf": str(WEIGHTS / "small"),
            "https://host/v1": server.base_url,
            "some-model": server.model,
        }
        for theirs, its in ours.items():
            assert theirs in block
            block = block.replace(theirs, its)
        exec(block, {"__name__": "readme"})
        assert len(server.bodies) == 1
    assert capsys.readouterr().out.startswith("3.73 large ")
