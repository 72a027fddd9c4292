"""Which modules of the engine one escalated request crosses; prints JSON: `python benchmarks/crossing.py`.

``benchmarks/structure.py`` runs this with another checkout's ``sgl_engine`` on the path, so it imports
nothing else of ours, and only names that were public before the engine was cut into folders.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

OURS = "sgl_engine"
# Imports, and expressions that were functions of their own before Python 3.12.
NO_FUNCTIONS = ("<module>", "<listcomp>", "<setcomp>", "<dictcomp>")


class CallRecorder:
    """A profiler that notes calls of our functions, on every thread that is started under it.

    Attributes:
        calls: Caller's module, callee's module and function's name; the caller is the nearest function of
            ours, "" where there is none. Only those made while ``listening``.
        listening: Whether calls are noted.
    """

    def __init__(self) -> None:
        self.calls: set[tuple[str, str, str]] = set()
        self.listening = False

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        """Takes an event of ``sys.setprofile``."""
        if self.listening and event == "call" and _is_ours(frame):
            caller = frame.f_back
            while caller and not _is_ours(caller):
                caller = caller.f_back
            self.calls.add((_module(caller) if caller else "", _module(frame), _function(frame.f_code)))


def _is_ours(frame: FrameType) -> bool:
    return _module(frame).partition(".")[0] == OURS and frame.f_code.co_name not in NO_FUNCTIONS


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _function(code: CodeType) -> str:
    return code.co_qualname


def crossing() -> dict[str, Any]:
    """Asks two tiny models the same twice, and notes the calls of the second time.

    Returns:
        "root": where the engine was imported from. "modules": in which a function was entered, by name.
        "calls": triples as of ``CallRecorder.calls``.
    """
    from PIL import Image

    import sgl_engine
    from sgl_engine import EngineConfig, ExitConfig, Request, SGLEngine
    from sgl_engine.testing import tiny_vlm

    def pair() -> SGLEngine:
        unsure = EngineConfig(exit=ExitConfig(threshold=1.0))
        return SGLEngine(tiny_vlm(size="small"), tiny_vlm(size="large"), unsure)

    recorder = CallRecorder()
    request = Request.ask("What is this?", Image.new("RGB", (64, 48), "teal"), max_new_tokens=8)
    pair().run(request)  # what is imported on first use runs twice as long under a profiler
    threading.setprofile(recorder)  # before the worker's thread is started
    engine = pair()
    engine.run(request)
    sys.setprofile(recorder)
    recorder.listening = True
    response = engine.run(request)
    recorder.listening = False
    sys.setprofile(None)
    threading.setprofile(None)
    if not response.report.escalated or response.report.forced:
        raise SystemExit("The tiny pair was sure, so this was no escalated request.")
    return {
        "root": str(Path(sgl_engine.__file__).parents[1]),
        "modules": sorted({callee for _, callee, _ in recorder.calls}),
        "calls": sorted(recorder.calls),
    }


if __name__ == "__main__":
    print(json.dumps(crossing(), indent=1))
