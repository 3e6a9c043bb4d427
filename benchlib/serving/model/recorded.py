"""Networks whose launches are recorded once for each shape, as CUDA graphs for one launch each.

Source: https://pytorch.org/blog/accelerating-pytorch-with-cuda-graphs, 2021. Knows CUDA's graphs and
how long their answers last. Ignorant of what the networks compute.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from benchlib.serving.model.graph_memsets import can_edit_graphs, memsets_to_kernels
from benchlib.serving.model.text_once import Conditions, TextOnce

Answer = TypeVar("Answer")


class Recorder:
    """Records calls. Its recordings share their memory, so one of them may run at a time.

    A replay may overwrite the answers of every other recording, but not its own inputs. A pipeline
    has one recorder for all of its networks.
    """

    def __init__(self) -> None:
        self._pool: Any = None
        self.latest: Any = None
        """What was replayed last, as far as its answers must last; None for anything else."""

    def record(self, call: Callable[[], Answer]) -> tuple[Any, Answer]:
        """Returns the graph of `call`, and the tensors that a replay writes."""
        # 1) Call: the preparations of a first call can't be recorded. That takes no stream of its
        # own: without gradients none is needed, and cuBLAS keeps 33 MiB for each stream on a Hopper
        for _ in range(2):
            call()

        # 2) Record
        self.latest = None
        edits = can_edit_graphs()
        graph = torch.cuda.CUDAGraph(keep_graph=True) if edits else torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            answer = call()
        if edits:
            memsets_to_kernels(graph)
            graph.instantiate()
        self._pool = graph.pool()
        torch._dynamo.utils.counters["benchlib"]["recorded"] += 1
        return graph, answer


@dataclass(frozen=True, eq=False)
class _Recording:
    """The graphs of one shape, the tensors that they read, and the one that they write.

    `conditions` is the graph of what a batch needs once, or None. `fixed` are the inputs that stay
    the same in every step of a batch.
    """

    conditions: Any
    step: Any
    fixed: list[Tensor]
    changing: list[Tensor]
    noise: Tensor


class RecordedUNet(torch.nn.Module):
    """A UNet as CUDA graphs. The next call overwrites the answer.

    Inputs that are the same tensors as in the last call are not copied again: the caller never
    writes into them.
    """

    def __init__(self, network: torch.nn.Module, recorder: Recorder | None = None) -> None:
        super().__init__()
        self.network = network
        self._recorder = recorder or Recorder()
        self._recorded: dict[Any, _Recording] = {}
        self._fixed: Sequence[Tensor] = ()  # of the last call

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        *,
        encoder_hidden_states: Tensor,
        added_cond_kwargs: dict[str, Tensor],
        return_dict: bool,  # noqa: ARG002 - as the UNet's own
        timestep_cond: Tensor | None = None,
    ) -> tuple[Tensor]:
        # 1) Find the recording
        changing = [latents, timesteps]
        fixed = [encoder_hidden_states, *added_cond_kwargs.values()]
        if timestep_cond is not None:
            fixed.append(timestep_cond)
        shapes = tuple(tensor.shape for tensor in changing + fixed)
        if shapes not in self._recorded:
            self._recorded[shapes] = self._record(changing, fixed, list(added_cond_kwargs))
        recording = self._recorded[shapes]

        # 2) Replay it
        self._renew(recording, fixed)
        for place, tensor in zip(recording.changing, changing, strict=True):
            place.copy_(tensor)
        recording.step.replay()
        return (recording.noise,)

    def _renew(self, recording: _Recording, fixed: Sequence[Tensor]) -> None:
        """Take in the inputs of a new batch, and compute what it needs once.

        That lies in the recordings' common memory. So it is lost once another one was replayed.
        """
        pairs = zip(self._fixed, fixed, strict=False)
        if self._recorder.latest is recording and all(a is b for a, b in pairs):
            return
        self._recorder.latest = None
        for place, tensor in zip(recording.fixed, fixed, strict=True):
            place.copy_(tensor)
        if recording.conditions is not None:
            recording.conditions.replay()
        self._fixed = fixed
        self._recorder.latest = recording

    def _record(
        self, changing: Sequence[Tensor], fixed: Sequence[Tensor], names: list[str]
    ) -> _Recording:
        """Record a shape; `names` are those of the added conditions."""
        latents, timesteps = (tensor.clone() for tensor in changing)
        text, *rest = places = [tensor.clone() for tensor in fixed]
        added = dict(zip(names, rest, strict=False))
        guidance = rest[len(names) :]  # of a UNet that reads the guidance; else empty
        options: dict[str, Any] = {"timestep_cond": guidance[0] if guidance else None}
        network = self.network

        if isinstance(network, TextOnce):
            once = network

            def prepare() -> Conditions:
                return once.conditions(text, added)

            first, conditions = self._recorder.record(prepare)
            step, noise = self._recorder.record(
                lambda: once.denoise(latents, timesteps, conditions, **options)
            )
            return _Recording(first, step, places, [latents, timesteps], noise)

        options |= {"encoder_hidden_states": text, "added_cond_kwargs": added}
        step, noise = self._recorder.record(
            lambda: network(latents, timesteps, return_dict=False, **options)[0]
        )
        return _Recording(None, step, places, [latents, timesteps], noise)


class _Encoded:
    """The answer of a text encoder, as far as `encode_prompt` reads it."""

    def __init__(self, first: Tensor, last_but_one: Tensor) -> None:
        self.hidden_states = (last_but_one, first)
        self._first = first

    def __getitem__(self, number: int) -> Tensor:
        assert number == 0
        return self._first


class RecordedEncoder(torch.nn.Module):
    """A text encoder of CLIP as CUDA graphs, one for each number of prompts.

    It hides its modules: diffusers asks each of them for hooks at each call.
    """

    def __init__(self, network: Any, recorder: Recorder | None = None) -> None:
        super().__init__()
        self._hidden = (network,)
        self.device = network.device
        self.dtype = network.dtype
        self.config = network.config
        self._recorder = recorder or Recorder()
        self._recorded: dict[Any, tuple[Any, Tensor, tuple[Tensor, Tensor]]] = {}

    def forward(self, ids: Tensor, *, output_hidden_states: bool) -> _Encoded:
        """`ids` is (prompts, 77). The tensors of the answer are the caller's own."""
        assert output_hidden_states
        if ids.shape not in self._recorded:
            self._recorded[ids.shape] = self._record(ids.clone())
        graph, place, answer = self._recorded[ids.shape]
        place.copy_(ids)
        self._recorder.latest = None
        graph.replay()
        first, last_but_one = (tensor.clone() for tensor in answer)
        return _Encoded(first, last_but_one)

    def _record(self, place: Tensor) -> tuple[Any, Tensor, tuple[Tensor, Tensor]]:
        (network,) = self._hidden

        def call() -> tuple[Tensor, Tensor]:
            answer = network(place, output_hidden_states=True)
            return answer[0], answer.hidden_states[-2]

        graph, answer = self._recorder.record(call)
        return graph, place, answer
