import pickle

import pytest

from sgl_engine import errors
from sgl_engine.chat.interruptible import interruptible
from sgl_engine.errors import DeadlineError, ImageLimitError, RequestError, SGLError


def test_messages_hold_problem_and_remedy() -> None:
    error = ImageLimitError("17 images; the limit is 16.", remedy="Send fewer.")
    assert str(error) == "17 images; the limit is 16. Send fewer."
    assert isinstance(error, RequestError)


def test_errors_survive_pickling() -> None:
    error = pickle.loads(pickle.dumps(ImageLimitError("A.", remedy="B.")))
    assert (type(error), error.problem, error.remedy) == (ImageLimitError, "A.", "B.")


def test_a_deadline_that_has_passed_is_a_time_out() -> None:
    error = DeadlineError("A.", remedy="B.")
    assert isinstance(error, TimeoutError)
    assert (str(error), error.errno, error.filename) == ("A. B.", None, None)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.problem, again.remedy, str(again)) == (DeadlineError, "A.", "B.", "A. B.")


@pytest.mark.parametrize("late", [DeadlineError("Late.", remedy="B."), TimeoutError("Late.")], ids=repr)
def test_work_that_is_late_by_itself_is_not_waited_for(late: Exception) -> None:
    """Waiting in turns ends by a TimeoutError as well: they must not be taken for each other."""

    def work() -> None:
        raise late

    with pytest.raises(type(late), match="Late"):
        interruptible(work, still_wanted=lambda: None)


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    assert errors.__doc__ is not None
    depths: list[str] = []
    for line in errors.__doc__.splitlines():
        name = next((word for word in line.split() if word.endswith("Error") and word[0].isupper()), None)
        if name is None or "    " not in line:
            continue
        depth = (line.index(name) - 4) // 4
        kind = getattr(errors, name)
        depths[depth:] = [name]
        expected = errors.__dict__[depths[depth - 1]] if depth else Exception
        assert kind.__bases__[0] == expected
        assert issubclass(kind, SGLError)
    drawn = errors.__doc__.count("── ") + 1
    defined = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, SGLError)
    ]
    assert drawn == len(defined)
