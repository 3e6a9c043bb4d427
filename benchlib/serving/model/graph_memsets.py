"""Small memsets of a recorded CUDA graph as kernels of ours, which write the same bytes.

cuDNN's attention clears a counter before each call, and so do some convolutions and products: 4 bytes
each. By a profile of a replay on an H200, a kernel starts 0.4 us after another kernel. A memset starts
1.5 us after a kernel, takes 0.8 us, and the next kernel starts 3.5 us later. A step of one guided image
of SDXL has 166 memsets. So kernels in place of them save at most

    166 x (1.5 + 0.8 + 3.5 - 0.4 - 1.2 - 0.4) us = 0.6 ms

Knows CUDA's graphs through cuda-bindings, which torch 2.11 for CUDA requires on Linux. Ignorant of what
the graph computes.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch

from benchlib.printing import print_line

MOST_BYTES = 64 * 1024  # a larger memset takes longer than the gaps around it
_THREADS = 256

_FILL = b"""
extern "C" __global__ void fill(
    unsigned char* start, unsigned int value, unsigned int element_bytes, unsigned int bytes)
{
    unsigned int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at < bytes) start[at] = (unsigned char)(value >> (8 * (at % element_bytes)));
}
"""


class GraphError(RuntimeError):
    """CUDA refused a call; the words are CUDA's own name of the error."""


@cache
def can_edit_graphs() -> bool:
    """Whether torch hands out a recorded graph, and cuda-bindings is there to edit it.

    If not, a line says so once. On AMD's cards no line does, since no gain was measured there.
    """
    if torch.version.hip is not None:
        return False
    lacks = None
    if not hasattr(torch.cuda.CUDAGraph, "raw_cuda_graph"):
        lacks = f"torch {torch.__version__} keeps a recorded graph to itself"
    else:
        try:
            from cuda.bindings import nvrtc

            nvrtc.nvrtcVersion()
        except (ImportError, RuntimeError, OSError) as error:
            lacks = f"CUDA's compiler can't be called from Python ({error})"
    if lacks is not None:
        print_line(f"cuda-graphs: {lacks}, so a step keeps its memsets: one image is 2 % slower")
    return lacks is None


def memsets_to_kernels(graph: Any) -> int:
    """Replace the small memsets of `graph`, which was recorded on the current device.

    `graph` is a `torch.cuda.CUDAGraph` with `keep_graph`, not yet instantiated. Returns how many were
    replaced. Raises GraphError.
    """
    from cuda.bindings import driver

    device = torch.cuda.current_device()
    return replace_memsets(driver.CUgraph(graph.raw_cuda_graph()), driver, _fill_kernel(device))


def replace_memsets(graph: Any, driver: Any, fill: Any) -> int:
    """Replace the small memsets of `graph` by the kernel `fill`; `driver` is cuda-bindings'."""
    count = _answer(driver.cuGraphGetNodes(graph))[1]
    nodes = _answer(driver.cuGraphGetNodes(graph, count))[0]
    replaced = 0
    for node in nodes:
        (kind,) = _answer(driver.cuGraphNodeGetType(node))
        if kind != driver.CUgraphNodeType.CU_GRAPH_NODE_TYPE_MEMSET:
            continue
        (memset,) = _answer(driver.cuGraphMemsetNodeGetParams(node))
        if memset.height == 1 and memset.width * memset.elementSize <= MOST_BYTES:
            _replace(graph, node, _launch(memset, driver, fill), driver)
            replaced += 1
    return replaced


def _launch(memset: Any, driver: Any, fill: Any) -> Any:
    """A launch of `fill` that writes what `memset` writes."""
    size_bytes = memset.width * memset.elementSize
    launch = driver.CUDA_KERNEL_NODE_PARAMS()
    launch.func = fill
    launch.gridDimX = -(-size_bytes // _THREADS)
    launch.gridDimY = launch.gridDimZ = 1
    launch.blockDimX = _THREADS
    launch.blockDimY = launch.blockDimZ = 1
    launch.kernelParams = (
        (int(memset.dst), memset.value, memset.elementSize, size_bytes),
        (ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint, ctypes.c_uint),
    )
    return launch


def _replace(graph: Any, node: Any, launch: Any, driver: Any) -> None:
    """Put a kernel between the same neighbours in place of `node`."""
    before, _ = _neighbours(driver.cuGraphNodeGetDependencies, node)
    after, edges = _neighbours(driver.cuGraphNodeGetDependentNodes, node)
    (kernel,) = _answer(driver.cuGraphAddKernelNode(graph, before, len(before), launch))
    if after:
        same = [kernel] * len(after)
        _answer(driver.cuGraphAddDependencies(graph, same, after, edges, len(after)))
    _answer(driver.cuGraphDestroyNode(node))


def _neighbours(ask: Any, node: Any) -> tuple[list[Any], list[Any]]:
    """The nodes on one side of `node`, and what CUDA keeps of each edge."""
    count = _answer(ask(node))[-1]
    if count == 0:
        return [], []
    nodes, edges, _ = _answer(ask(node, count))
    return nodes, edges


@cache
def _fill_kernel(device: int) -> Any:
    """The kernel, compiled for and loaded on a device. It is kept for the process."""
    from cuda.bindings import driver, nvrtc

    # 1) Compile
    major, minor = torch.cuda.get_device_capability(device)
    options = [f"--gpu-architecture=sm_{major}{minor}".encode()]
    (program,) = _answer(nvrtc.nvrtcCreateProgram(_FILL, b"fill.cu", 0, [], []))
    _answer(nvrtc.nvrtcCompileProgram(program, len(options), options))
    (size_bytes,) = _answer(nvrtc.nvrtcGetCUBINSize(program))
    code = b" " * size_bytes
    _answer(nvrtc.nvrtcGetCUBIN(program, code))
    _answer(nvrtc.nvrtcDestroyProgram(program))

    # 2) Load
    (module,) = _answer(driver.cuModuleLoadData(code))
    (kernel,) = _answer(driver.cuModuleGetFunction(module, b"fill"))
    return kernel


def _answer(returned: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a call returned beside its state. Raises GraphError if it failed."""
    state, *answer = returned
    if int(state) != 0:
        raise GraphError(f"cuda-graphs: CUDA refused to edit a graph: {state.name}")
    return tuple(answer)
