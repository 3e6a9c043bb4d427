"""How errors cross from a replica's process."""

import pickle

import pytest

from benchlib.serving.engine.faults import NotFinite
from benchlib.serving.engine.jobs import DoesNotFit, Refused
from benchlib.serving.replicas.ray_deployment import portable
from benchlib.serving.schemas import BadField


@pytest.mark.parametrize(
    "error",
    [
        DoesNotFit((64, 128)),
        NotFinite("pixels"),
        BadField("steps", "too few"),
        Refused("full", retry_after_s=2.0),
        ValueError("dtype: 'int3'"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_our_errors_cross_whole(error):
    crossed = pickle.loads(pickle.dumps(portable(error)))
    assert type(crossed) is type(error)
    assert str(crossed) == str(error)
    assert vars(crossed) == vars(error)


class Closed(Exception):
    """Can't be pickled, because its class takes another number of arguments."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def test_foreign_errors_cross_in_words():
    crossed = portable(Closed("this", "that"))
    assert type(crossed) is RuntimeError
    assert str(crossed) == "Closed: this and that"
