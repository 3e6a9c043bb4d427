"""The compiler's reports: left out, with the same guards and answers, unless logs are asked for."""

from types import SimpleNamespace

import pytest
import torch
from torch._dynamo import config, guards, symbolic_convert

from benchlib.serving.model import compiler_reports
from benchlib.serving.model.compiler_reports import leave_out_reports


@pytest.fixture
def calls(monkeypatch):
    """The names of the reports that torch makes from here on."""
    made = []

    def counted(module, name):
        usual = getattr(module, name)

        def report(*args):
            made.append(name)
            return usual(*args)

        monkeypatch.setattr(module, name, report)

    counted(guards, "profile_guard_manager")
    counted(symbolic_convert, "get_funcname")
    for name in compiler_reports._LOGS:
        monkeypatch.delenv(name, raising=False)
    torch.compiler.reset()
    with config.patch(run_gc_after_compile=True):
        yield made
    torch.compiler.reset()


def compiled_twice():
    """Answers of a function that is compiled for two shapes, and the number of its graphs."""
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    double = torch.compile(lambda x: x.sin() + x.shape[0], backend=backend, dynamic=False)
    answers = [double(torch.ones(rows)).tolist() for rows in (2, 3, 2, 3)]
    return answers, len(graphs)


def test_graphs_and_guards_stay_as_they_were(calls):
    usual = compiled_twice()
    assert {"profile_guard_manager", "get_funcname"} == set(calls)
    torch.compiler.reset()
    calls.clear()
    leave_out_reports()
    assert compiled_twice() == usual
    assert usual[1] == 2
    assert not calls


@pytest.mark.parametrize("name", compiler_reports._LOGS)
def test_who_asks_for_logs_has_them(calls, monkeypatch, name):
    monkeypatch.setenv(name, "")
    leave_out_reports()
    compiled_twice()
    assert "profile_guard_manager" in calls


@pytest.mark.parametrize("found", [True, False])
def test_garbage_is_collected_where_graphs_are_made(calls, monkeypatch, found):  # noqa: ARG001
    monkeypatch.setattr(compiler_reports, "ARTEFACTS", SimpleNamespace(has_found_packs=found))
    leave_out_reports()
    assert config.run_gc_after_compile is not found
