"""The README's Python runs, block by block, as a newcomer would type it."""

import re
from pathlib import Path

import pytest

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
