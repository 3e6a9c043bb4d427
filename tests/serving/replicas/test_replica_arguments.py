"""`replicas` and `address`: what is refused before anything starts, and in which words."""

import pytest

from benchlib.__main__ import main
from benchlib.serving.replicas.replica_arguments import check_replicas
from benchlib.serving.server import serve


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"replicas": 0}, "replicas: 0 is too few"),
        ({"replicas": -1}, "replicas: -1 is too few"),
        ({"replicas": "two"}, "replicas: 'two' is no number"),
        ({"replicas": True}, "replicas: True is no number"),
        ({"replicas": 1.5}, "replicas: 1.5 is no number"),
        ({"address": "auto"}, "address: it is for replicas"),
        ({"replicas": 2, "address": "ray://head:10001"}, "address: 'ray://head:10001'"),
        ({"replicas": 2, "address": "local"}, "address: 'local' would begin another Ray"),
    ],
)
def test_a_bad_argument_is_named(given, words):
    with pytest.raises(ValueError, match=words):
        serve("tiny", **given)


def test_a_loaded_pipeline_has_no_replicas():
    with pytest.raises(ValueError, match="replicas: each loads the model"):
        check_replicas(object(), 2, None)


@pytest.mark.parametrize("given", [(None, None), (1, None), ("auto", None), (4, "10.0.0.1:6379")])
def test_a_good_argument_passes(given):
    check_replicas("tiny", *given)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--replicas", "0"], "replicas"),
        (["--replicas", "some"], "replicas"),
        (["--address", "auto"], "address: it is for replicas"),
    ],
)
def test_the_command_line_names_a_bad_option(options, words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["serve", *options])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
