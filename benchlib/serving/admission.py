"""Whether the model and this server take a request, asked before it waits for anything.

Knows steps, pixel steps, sides, adapters, the foretold wait, and each client's share of the queue.
Ignorant of the bounds of single fields (schemas.py), of HTTP's bodies, and of torch.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from fastapi.exceptions import RequestValidationError

from benchlib.lora import unknown_lora
from benchlib.serving.backend import Backend, ImageJob
from benchlib.serving.door_options import Bounds, DoorOptions
from benchlib.serving.engine.simulate import SimulatedTask
from benchlib.serving.schemas import BadField, GenerateRequest, unfit_sides
from benchlib.serving.unserved import retry_later

TOO_LARGE = "too_large"
_IPV6_NETWORK_BITS = 64  # a household or a host has that many addresses to choose from


class Admission:
    """Lets requests in, by the engine's state and the door's bounds."""

    def __init__(self, engine: Backend[Any], door: DoorOptions) -> None:
        self.engine = engine
        self.door = door
        # The jobs of each request inside, by the client that sent it.
        self._inside: list[tuple[str, list[ImageJob]]] = []

    @property
    def bounds(self) -> Bounds:
        """The bounds in force; those of a CPU while the model loads."""
        return self.door.bounds_on(self.engine.spec.get("device", "cpu"))

    async def check(self, wanted: Sequence[GenerateRequest]) -> int:
        """Return the calls of the UNet for each of `wanted`, which differ in their seeds alone.

        Raises RequestValidationError, which names each field at fault, unless the requests are
        taken. Its `type` is TOO_LARGE for too many pixel steps or images.
        """
        request = wanted[0]
        calls = await self._count_calls(request)
        self._check_images(len(wanted))
        self._check_pixel_steps(request, calls, len(wanted))

        # A model that loads has no multiple yet.
        spec = self.engine.spec
        unfit = unfit_sides(request, spec.get("size_multiple", 1))
        if unfit:
            raise _invalid(unfit, "multiple_of")

        # A model that loads has a spec later, and the engine will refuse.
        unknown = unknown_lora(request.lora, spec)
        if spec and unknown is not None:
            raise _invalid({"lora": unknown}, "value_error")
        return calls

    @contextmanager
    def enter(
        self, address: str, wanted: Sequence[GenerateRequest], calls: int
    ) -> Iterator[list[ImageJob]]:
        """Yield the list for the jobs of `wanted`, which count as the client's until the end.

        Raises Unserved: 503 if the foretold wait is above `max_queue_s`, and 429 if the client at
        `address` would have more than its share inside.
        """
        client = _client_of(address)
        self._check_wait(wanted[0], calls)
        self._check_share(client, len(wanted))
        jobs: list[ImageJob] = []
        entry = (client, jobs)
        self._inside.append(entry)
        try:
            yield jobs
        finally:
            self._inside.remove(entry)

    # -- the request by itself ---------------------------------------------------------------------

    async def _count_calls(self, request: GenerateRequest) -> int:
        """The steps, which the scheduler counts: some take two calls of the UNet for a step."""
        schedules = self.engine.schedules
        try:
            if schedules is None:  # the engine will say why
                return request.num_inference_steps
            if schedules.knows_calls(request):
                return schedules.count_calls(request)
            return await asyncio.to_thread(schedules.count_calls, request)
        except BadField as error:
            raise _invalid({error.field: error.problem}, "value_error") from error

    def _check_images(self, images: int) -> None:
        bounds = {"max_queue": self.engine.options.max_queue}
        if self.bounds.max_per_client is not None:
            bounds["max_per_client"] = self.bounds.max_per_client
        for name, most in bounds.items():
            if images > most:
                words = f"{images} images are above this server's {name}; ask for at most {most}"
                raise _invalid({"n": words}, TOO_LARGE)

    def _check_pixel_steps(self, request: GenerateRequest, calls: int, images: int) -> None:
        most = self.bounds.max_pixel_steps
        pixel_steps = images * request.width * request.height * calls
        if most is None or pixel_steps <= most:
            return
        product = "width x height x num_inference_steps"
        fields = ["width", "height", "num_inference_steps"]
        if images > 1:
            product += " x n"
            fields.insert(0, "n")
        message = f"{product} is {pixel_steps}, above this server's limit of {most}"
        if calls != request.num_inference_steps:
            message += f" (the scheduler takes {calls} steps of the model)"
        raise _invalid(dict.fromkeys(fields, message), TOO_LARGE)

    # -- the request among others ------------------------------------------------------------------

    def _check_wait(self, request: GenerateRequest, calls: int) -> None:
        most_s = self.bounds.max_queue_s
        # A simulation takes milliseconds, so it is kept for a queue that may be too long. A batch
        # takes less than twice as long as its requests one by one.
        if most_s is None or self.engine.work_s() <= most_s / 2:
            return
        now_s = time.monotonic()
        newcomer = SimulatedTask(
            size=(request.width, request.height),
            rows=request.rows(self.engine.spec.get("guided_rows", 2)),
            steps_left=calls,
            arrived_s=now_s,
            lora=request.lora,
        )
        begun_s = self.engine.foretell(now_s, newcomer)[newcomer].begun_s
        assert begun_s is not None
        wait_s = begun_s - now_s
        if wait_s > most_s:
            words = f"the wait is foretold as {wait_s:.0f} s, above the limit of {most_s:g} s"
            raise retry_later(503, "wait_too_long", words, wait_s - most_s)

    def _check_share(self, client: str, images: int) -> None:
        most = self.bounds.max_per_client
        if most is None:
            return
        inside = [
            job
            for owner, jobs in self._inside
            if owner == client
            for job in jobs
            if not job.future.done()
        ]
        too_many = len(inside) + images - most
        if too_many <= 0:
            return
        now_s = time.monotonic()
        finished = self.engine.foretell(now_s)
        done_s = sorted(finished[job].done_s for job in inside if job in finished)
        wait_s = done_s[too_many - 1] - now_s if len(done_s) >= too_many else 0.0
        words = (
            f"this client has {len(inside)} images in the queue or under way; it may have {most}"
        )
        raise retry_later(429, "client_share", words, wait_s)


def _client_of(address: str) -> str:
    """The client at an address. Whoever has one address of IPv6 has its whole network of 64 bits.

    A socket of IPv6 shows clients of IPv4 as ::ffff:192.0.2.1.
    """
    try:
        host = ipaddress.ip_address(address)
    except ValueError:  # a Unix socket has no address
        return address
    if host.version == 4:
        return address
    if host.ipv4_mapped is not None:
        return str(host.ipv4_mapped)
    network = ipaddress.ip_network((int(host), _IPV6_NETWORK_BITS), strict=False)
    return str(network)


def _invalid(problems: Mapping[str, str], kind: str) -> RequestValidationError:
    """The error of a bad body: what is wrong, by field."""
    return RequestValidationError(
        [
            {"loc": ("body", field), "msg": message, "type": kind}
            for field, message in problems.items()
        ]
    )
