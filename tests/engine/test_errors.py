import pickle

from sgl_engine import errors
from sgl_engine.errors import ImageLimitError, RequestError, SGLError


def test_messages_hold_problem_and_remedy() -> None:
    error = ImageLimitError("17 images; the limit is 16.", remedy="Send fewer.")
    assert str(error) == "17 images; the limit is 16. Send fewer."
    assert isinstance(error, RequestError)


def test_errors_survive_pickling() -> None:
    error = pickle.loads(pickle.dumps(ImageLimitError("A.", remedy="B.")))
    assert (type(error), error.problem, error.remedy) == (ImageLimitError, "A.", "B.")


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
        assert kind.__bases__ == (expected,)
        assert issubclass(kind, SGLError)
    drawn = errors.__doc__.count("── ") + 1
    defined = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, SGLError)
    ]
    assert drawn == len(defined)
