"""Memsets of recorded graphs that become kernels: the graph's order, its bytes, and what it leaves."""

import sys
from collections import Counter
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from benchlib.serving.model import recorded
from benchlib.serving.model.graph_memsets import (
    MOST_BYTES,
    GraphError,
    can_edit_graphs,
    memsets_to_kernels,
    replace_memsets,
)


class State(int):
    """A state of CUDA's calls, with its name."""

    name = "CUDA_ERROR_INVALID_VALUE"


class FakeDriver:
    """CUDA's graphs as a dictionary of nodes, and edges with what CUDA keeps of each."""

    CUgraphNodeType = SimpleNamespace(CU_GRAPH_NODE_TYPE_MEMSET="memset")
    CUDA_KERNEL_NODE_PARAMS = SimpleNamespace

    def __init__(self, nodes, edges):
        self.nodes = dict(nodes)
        self.edges = dict(edges)
        self.refused = ""

    def _told(self, name, *answer):
        return (State(self.refused == name), *answer)

    def cuGraphGetNodes(self, graph, count=0):  # noqa: N802, ARG002 - CUDA's names
        return self._told("nodes", list(self.nodes)[:count], len(self.nodes))

    def cuGraphNodeGetType(self, node):  # noqa: N802
        return self._told("type", self.nodes[node][0])

    def cuGraphMemsetNodeGetParams(self, node):  # noqa: N802
        return self._told("params", self.nodes[node][1])

    def cuGraphNodeGetDependencies(self, node, count=0):  # noqa: N802
        found = [(a, kept) for (a, b), kept in self.edges.items() if b == node]
        return self._told(
            "before", [a for a, _ in found][:count], [k for _, k in found], len(found)
        )

    def cuGraphNodeGetDependentNodes(self, node, count=0):  # noqa: N802
        found = [(b, kept) for (a, b), kept in self.edges.items() if a == node]
        return self._told("after", [b for b, _ in found][:count], [k for _, k in found], len(found))

    def cuGraphAddKernelNode(self, graph, before, count, launch):  # noqa: N802, ARG002
        assert len(before) == count
        new = f"kernel {len(self.nodes)}"
        self.nodes[new] = ("kernel", launch)
        self.edges |= {(node, new): None for node in before}
        return self._told("add", new)

    def cuGraphAddDependencies(self, graph, ends, starts, kept, count):  # noqa: N802, ARG002
        assert len(ends) == len(starts) == len(kept) == count
        self.edges |= {(a, b): k for a, b, k in zip(ends, starts, kept, strict=True)}
        return self._told("join")

    def cuGraphDestroyNode(self, node):  # noqa: N802
        del self.nodes[node]
        self.edges = {pair: kept for pair, kept in self.edges.items() if node not in pair}
        return self._told("destroy")


def memset(width, *, height=1, element=1, value=0):
    asked = {"dst": 4096, "value": value, "elementSize": element, "width": width, "height": height}
    return "memset", SimpleNamespace(**asked, pitch=0)


def graph_with(*memsets):
    """Two kernels, then all of the memsets side by side, then two kernels that wait for each."""
    names = [f"memset {number}" for number in range(len(memsets))]
    nodes = dict.fromkeys(("a", "b", "y", "z"), ("kernel", None))
    nodes |= dict(zip(names, memsets, strict=True))
    edges = {(start, name): None for start in "ab" for name in names}
    edges |= {(name, end): f"{name} to {end}" for end in "yz" for name in names}
    return FakeDriver(nodes, edges)


def test_a_memset_becomes_a_kernel_between_the_same_neighbours():
    driver = graph_with(memset(4))
    assert replace_memsets("graph", driver, "fill") == 1
    [name] = set(driver.nodes) - set("abyz")
    launch = driver.nodes[name][1]
    assert launch.func == "fill"
    assert launch.kernelParams[0] == (4096, 0, 1, 4)
    assert (launch.gridDimX, launch.gridDimY, launch.gridDimZ) == (1, 1, 1)
    before = {("a", name): None, ("b", name): None}
    assert driver.edges == before | {(name, end): f"memset 0 to {end}" for end in "yz"}


def test_the_kernel_has_a_thread_for_each_byte():
    driver = graph_with(memset(1000, element=4, value=0x01020304))
    replace_memsets("graph", driver, "fill")
    launch = next(kept for kind, kept in driver.nodes.values() if kept is not None)
    assert launch.kernelParams[0] == (4096, 0x01020304, 4, 4000)
    assert launch.gridDimX * launch.blockDimX >= 4000 > (launch.gridDimX - 1) * launch.blockDimX


def test_large_memsets_and_those_of_several_rows_stay():
    driver = graph_with(memset(MOST_BYTES), memset(MOST_BYTES + 1), memset(8, height=2))
    assert replace_memsets("graph", driver, "fill") == 1
    assert Counter(kind for kind, _ in driver.nodes.values()) == {"kernel": 5, "memset": 2}


def test_a_memset_without_neighbours_is_replaced():
    driver = FakeDriver({"alone": memset(4)}, {})
    assert replace_memsets("graph", driver, "fill") == 1
    assert [kind for kind, _ in driver.nodes.values()] == ["kernel"]


@pytest.mark.parametrize(
    "call", ["nodes", "type", "params", "before", "after", "add", "join", "destroy"]
)
def test_a_call_that_cuda_refuses_is_an_error(call):
    driver = graph_with(memset(4))
    driver.refused = call
    with pytest.raises(GraphError, match="refused to edit a graph: CUDA_ERROR_INVALID_VALUE"):
        replace_memsets("graph", driver, "fill")


@pytest.mark.parametrize("editable", [True, False])
def test_a_graph_is_edited_before_it_is_instantiated(monkeypatch, editable):
    done = []

    class Graph:
        def __init__(self, **options):
            done.append(options)

        def pool(self):
            return "pool"

        def instantiate(self):
            done.append("instantiated")

    @contextmanager
    def recording(graph, **_):  # noqa: ARG001
        yield
        done.append("recorded")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", recording)
    monkeypatch.setattr(recorded, "can_edit_graphs", lambda: editable)
    monkeypatch.setattr(recorded, "memsets_to_kernels", lambda graph: done.append("edited"))  # noqa: ARG005
    recorded.Recorder().record(lambda: "answer")
    edited = [{"keep_graph": True}, "recorded", "edited", "instantiated"]
    assert done == (edited if editable else [{}, "recorded"])


def test_a_graph_that_torch_keeps_to_itself_is_not_edited(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    can_edit_graphs.cache_clear()
    assert not can_edit_graphs()
    assert "a step keeps its memsets" in capsys.readouterr().out
    monkeypatch.setattr(torch.version, "hip", "7.0")
    can_edit_graphs.cache_clear()
    assert not can_edit_graphs()
    assert capsys.readouterr().out == ""
    can_edit_graphs.cache_clear()


def test_a_python_without_cudas_compiler_is_told_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", SimpleNamespace(raw_cuda_graph=None))
    monkeypatch.setitem(sys.modules, "cuda", None)
    can_edit_graphs.cache_clear()
    assert not can_edit_graphs()
    assert not can_edit_graphs()
    said = capsys.readouterr().out
    assert said.count("CUDA's compiler can't be called from Python") == 1
    can_edit_graphs.cache_clear()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here")
def test_an_edited_graph_writes_the_same_bytes():
    from cuda.bindings import driver

    places = torch.full((2, 3 * MOST_BYTES), 7, dtype=torch.uint8, device="cuda")

    def clear(row, start, count):
        stream = torch.cuda.current_stream().cuda_stream
        address = places[row, start:].data_ptr()
        assert driver.cuMemsetD8Async(address, 3, count, stream) == (driver.CUresult.CUDA_SUCCESS,)

    def call():
        clear(0, 1, 5)
        places[0, 9:] = places[0, 1] + 3
        clear(0, 16, MOST_BYTES)
        clear(1, 0, 2 * MOST_BYTES)
        places[1, 1:] += 1

    places.fill_(9)
    call()
    wanted = places.clone()
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with torch.cuda.graph(graph):
        call()
    assert memsets_to_kernels(graph) == 2
    graph.instantiate()
    for _ in range(3):
        places.fill_(9)
        graph.replay()
        assert torch.equal(places, wanted)
