"""Which prompts of a batch run side by side, and what becomes of the others when one of them fails."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from sgl_engine.errors import SGLError
from sgl_engine.model.vlm import takes_padding
from sgl_engine.prompt.batch import MAX_ROWS, most_rows

if TYPE_CHECKING:
    from sgl_engine.decoding.answer import AnswerTask
    from sgl_engine.model.vlm import VLM

Result = TypeVar("Result")


def group_rows(
    lengths: Sequence[int], kinds: Sequence[Hashable], *, max_rows: int = MAX_ROWS
) -> list[list[int]]:
    """Numbers of rows that run together: of one kind, of neighbouring lengths, within limits.

    Args:
        lengths: Tokens of each row.
        kinds: What has to be equal in a group.
        max_rows: Rows of a group at most.
    """
    groups: dict[Hashable, list[list[int]]] = {}
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        of_kind = groups.setdefault(kinds[row], [[]])
        # Ascending, so this row is the longest.
        if of_kind[-1] and len(of_kind[-1]) >= most_rows(lengths[row], max_rows):
            of_kind.append([])
        of_kind[-1].append(row)
    return [group for of_kind in groups.values() for group in of_kind]


def sharing(vlm: VLM, kind: Hashable) -> Hashable | None:
    """What has to be equal in a group; None where prompts cannot run side by side at all."""
    return kind if takes_padding(vlm) else None


def run_in_groups(
    vlm: VLM,
    tasks: Sequence[AnswerTask],
    kinds: Sequence[Hashable],
    run: Callable[[list[int]], list[Result]],
    *,
    max_rows: int = MAX_ROWS,
) -> list[Result]:
    """Runs tasks group by group, and returns the results in the order of the tasks.

    Args:
        vlm: The model; one that cannot be given padded prompts runs them one by one.
        tasks: What is run.
        kinds: What has to be equal in a group.
        run: Numbers of tasks that run together -> a result for each.
        max_rows: Rows of a group at most.
    """
    lengths = [len(task.prompt) for task in tasks]
    groups = group_rows(lengths, kinds, max_rows=max_rows if takes_padding(vlm) else 1)
    found = {row: result for group in groups for row, result in zip(group, run(group), strict=True)}
    return [found[row] for row in range(len(tasks))]


class Attempts:
    """Steps of several requests; what fails, fails alone, and takes part in no further step.

    Attributes:
        errors: By number of the request.
    """

    def __init__(self) -> None:
        self.errors: dict[int, Exception] = {}

    def each(self, step: Callable[[int], Result], rows: Iterable[int]) -> dict[int, Result]:
        """A step that requests take one by one: number -> its result, by number, of those that succeed."""
        found = {}
        for row in rows:
            try:
                found[row] = step(row)
            except Exception as error:  # noqa: BLE001  # whatever it is, the others go on
                self.errors[row] = error
        return found

    def outcomes(self, results: Mapping[int, Result]) -> list[Result | Exception]:
        """Results and errors, in order.

        Errors of ours come without tracebacks, which would keep a whole batch in memory.
        """
        known: dict[int, Result | Exception] = {**results}
        for row, error in self.errors.items():
            known[row] = error.with_traceback(None) if isinstance(error, SGLError) else error
        return [known[row] for row in sorted(known)]
