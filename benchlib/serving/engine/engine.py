"""The engine: a bounded queue, and one worker that carries out what its policy decides.

Knows waiting, admission, cancellation, starting and stopping. Ignorant of HTTP, of deadlines (the
hand-off cancels late jobs), of who should run with whom (policies.py), and of the pipeline's calls
(model_calls.py). There is one worker, because a diffusers pipeline is not thread-safe.
"""

from __future__ import annotations

import logging
import math
import threading
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from benchlib.collector import collector_paused
from benchlib.serving.engine.cohort import KeptTogether
from benchlib.serving.engine.faults import EngineEnded, Faults, reason_of
from benchlib.serving.engine.jobs import Cancelled, Job, Refused
from benchlib.serving.engine.made import WriteFile
from benchlib.serving.engine.model_calls import ModelCalls
from benchlib.serving.engine.options import RECORDED_OPTIONS, EngineOptions
from benchlib.serving.engine.own_model import free_memory, hide_from_collector
from benchlib.serving.engine.policies import Turn
from benchlib.serving.engine.policy_names import make_policy
from benchlib.serving.engine.simulate import (
    Finished,
    SimulatedTask,
    foretell_queue,
    one_by_one_s,
    until_place_s,
)
from benchlib.serving.engine.step_times import StepTimesBySize
from benchlib.serving.model.torch_thread import on_torch_thread, repeat_on_torch_thread
from benchlib.serving.schemas import GenerateRequest

if TYPE_CHECKING:
    from PIL.Image import Image

    from benchlib.serving.model.pipeline import SDXLPipeline
    from benchlib.serving.model.schedulers import Schedules

log = logging.getLogger(__name__)

State = Literal["loading", "ready", "failing", "failed", "stopped"]
STOPPING = "the server is stopping"
PROBE_S = 10.0  # a failing engine without requests tries a step this often


class Engine:
    """Runs jobs as its options say: "serial", "dynamic" or "continuous" (see policies.py).

    `source` is a pipeline, or a callable that loads one. The engine frees a pipeline that it
    loaded. `start()` returns at once; `settled` is set when loading and warm-up have succeeded or
    failed. `spec["step_times"]` has the cost of a batch of each size, as warm-up measured it.
    `on_step(jobs, seconds)` is called after each step, on the torch thread. `GuardedCalls` tells
    what becomes of the jobs of a call that fails. After any other error the engine ends: then its
    `failure` has the reason, and everybody inside gets it. `ended` is set once its thread is over.
    """

    replicas: tuple[()] = ()  # it is alone

    def __init__(
        self,
        source: SDXLPipeline | Callable[[], SDXLPipeline],
        options: EngineOptions | None = None,
    ) -> None:
        self.options = options or EngineOptions()
        self.on_step: Callable[[int, float], None] = lambda jobs, seconds: None  # noqa: ARG005
        self.running = 0  # jobs in the latest step, or 0 once there is nothing to do
        self.adapter_switches = 0  # from one adapter, or none, to another
        self.busy_s = 0.0  # in encode, step and decode calls
        self.faults = Faults()
        self.failure: BaseException | None = None
        self.doing = "loading the model"  # what the start does; any thread may read it
        self.settled = threading.Event()
        self.ended = threading.Event()
        self.spec: dict[str, Any] = {}
        self._source = source
        self._state: State = "loading"
        self._calls: ModelCalls  # exists from start-up to shutdown
        self._step_times = StepTimesBySize()
        self._times = self._step_times.__getitem__
        self._policy = make_policy(
            self.options.batching,
            self._times,
            max_batch_size=self.options.max_batch_size,
            max_wait_s=self.options.max_wait_ms / 1000,
        )
        # Dynamic batching has a wait of its own, and simulations take the policy itself.
        is_continuous = self.options.batching == "continuous"
        self._turns = KeptTogether(self._policy, self._times) if is_continuous else self._policy
        # The jobs that wait or have begun, in the order of arrival.
        self._jobs: list[Job] = []
        # The policy's decision; None if the policy must decide again.
        self._turn: Turn[Job] | None = None
        self._lora: str | None = None  # the adapter of the latest step
        # The jobs in the step under way. Their `steps_left` does not count it yet.
        self._stepping: tuple[Job, ...] = ()
        # When the full queue should have a place; None if there is no valid estimate.
        self._place_s: float | None = None
        self._change = threading.Condition()
        self._should_exit = False
        self._thread = threading.Thread(target=self._run, name="benchlib-engine", daemon=True)

    @property
    def waiting(self) -> int:
        """The number of jobs that have not begun."""
        return sum(not job.begun for job in tuple(self._jobs))

    @property
    def state(self) -> State:
        """What the engine does. "failing" is ready, but for a device that may be lost."""
        return "failing" if self._state == "ready" and self.faults.failing else self._state

    @property
    def trouble(self) -> str | None:
        """Why the engine has failed or is failing, in words."""
        return self.faults.why_failing if self.failure is None else str(self.failure)

    @property
    def schedules(self) -> Schedules | None:
        """What counts the steps of a request, None unless the engine has a model."""
        with self._change:
            return self._calls.pipeline.schedules if self._state == "ready" else None

    # -- for any thread ----------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to load. Does nothing if loading has begun."""
        if self._thread.ident is None:
            self._thread.start()

    def submit(
        self,
        request: GenerateRequest,
        *,
        request_id: str = "without an id",
        arrived_s: float | None = None,
        write_file: WriteFile | None = None,  # noqa: ARG002 - of a single engine, its owner writes files
    ) -> Job:
        """Queue a request; return its job. Raises `Refused` if not ready, stopping or full.

        Raises `EngineEnded` after an error that ended the engine, and `BadField` if the model's
        scheduler refuses the request.
        """
        now_s = time.monotonic()
        schedules = self.schedules
        steps = schedules.count_calls(request) if schedules else request.num_inference_steps
        rows = request.rows(self.spec.get("guided_rows", 2))
        job = Job(request, request_id, now_s if arrived_s is None else arrived_s, steps, rows)
        with self._change:
            if isinstance(self.failure, EngineEnded):
                raise EngineEnded(str(self.failure))
            if self.state == "loading":
                raise Refused("the model is still loading; wait for /ready", retry_after_s=1.0)
            if self.state == "failed":
                raise Refused(f"the model could not be loaded: {self.failure}")
            if self.state == "stopped" or self._should_exit:
                raise Refused(STOPPING)
            if self.waiting < self.options.max_queue:
                # From here on only this class ends the future.
                job.future.set_running_or_notify_cancel()
                self._jobs.append(job)
                self._decide_anew()
                return job
        raise Refused(
            f"the queue is full ({self.options.max_queue} wait)",
            retry_after_s=self._until_place_s(now_s),
        )

    def work_s(self) -> float:
        """Seconds that all jobs would still take one by one, by the measured step times."""
        return one_by_one_s(tuple(self._jobs), self._times)

    def foretell(
        self, now_s: float, *newcomers: SimulatedTask
    ) -> dict[Job | SimulatedTask, Finished]:
        """When each job and newcomer would begin and end from `now_s` on, if no other came."""
        with self._change:
            jobs = tuple(self._jobs)
            tasks, stepping = self._copies()
        finished = foretell_queue(self._policy, [*tasks, *newcomers], stepping, now_s, self._times)
        return dict(zip((*jobs, *newcomers), finished, strict=True))

    def cancel(self, job: Job) -> None:
        """Drop a job: at once if it waits, before its next step if it runs. Safe at any time."""
        with self._change:
            job.cancelled = True
            if job in self._jobs and not job.begun:
                self._end(job, Cancelled("cancelled while waiting"))

    def stop(self, *, drain_s: float = 30.0) -> None:
        """Refuse new jobs, drop the others after `drain_s` seconds, free an owned pipeline."""
        with self._change:
            self._should_exit = True
            self._decide_anew()
        if self._thread.ident is None:
            self._state = "stopped"
            return
        self._thread.join(drain_s)
        self.drop_jobs()
        self._thread.join()

    def drop_jobs(self) -> None:
        """Refuse new jobs and waiting jobs, and drop running jobs before their next step."""
        with self._change:
            self._should_exit = True
            self._decide_anew()
            for job in tuple(self._jobs):
                if job.begun:
                    job.cancelled = True
                else:
                    self._end(job, Refused(STOPPING))

    def _until_place_s(self, now_s: float) -> float:
        """Estimated seconds until a place is free. Valid until that time, or until the next job."""
        with self._change:
            if self._place_s is not None and self._place_s >= now_s:
                return self._place_s - now_s
            tasks, stepping = self._copies()
        wait_s = until_place_s(
            self._policy, tasks, stepping, now_s, self._times, self.options.max_queue
        )
        self._place_s = now_s + wait_s
        return wait_s

    # -- the engine's own thread -------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._startup()
        except BaseException as error:  # noqa: BLE001 - `serve` raises it in the waiting thread
            self.failure = error
            self._state = "failed"
            self.settled.set()
            self.ended.set()
            return
        try:
            self._main_loop()
        except BaseException as error:
            words = f"the engine has ended: {reason_of(error)}; start the server again"
            self.failure = EngineEnded(words)
            log.critical(words, exc_info=error)
            traceback.clear_frames(error.__traceback__)  # they hold the model
        try:
            self._shutdown()
        finally:
            self.ended.set()

    def _startup(self) -> None:
        # 1) Load
        source = self._source
        with collector_paused():  # a source may import torch and diffusers
            pipeline = on_torch_thread(source) if callable(source) else source
        self._calls = ModelCalls(pipeline, self.options, self.faults)

        # 2) Measure the cost of each size
        began_s = time.monotonic()
        showcase = (pipeline.spec["showcase"]["width"], pipeline.spec["showcase"]["height"])
        for size in self.options.sizes or [showcase]:
            self._step_times[size] = on_torch_thread(self._calls.warm_up, size, self._tell)

        # 3) Publish the spec
        recorded = {*RECORDED_OPTIONS, "batch_buckets", "on_nonfinite"}
        options = self.options.model_dump(mode="json", include=recorded)
        warm_up_s = time.monotonic() - began_s
        step_times = self._step_times.to_spec()
        self.spec = {**pipeline.spec, **options, "step_times": step_times, "warm_up_s": warm_up_s}
        if callable(source):
            hide_from_collector()
        self._state = "ready"
        self.settled.set()

    def _tell(self, doing: str) -> None:
        self.doing = doing

    def _main_loop(self) -> None:
        while self._wait_for_work():
            if self._jobs:
                repeat_on_torch_thread(self._take_turn)
            else:
                on_torch_thread(self._calls.probe)

    def _wait_for_work(self) -> bool:
        """Wait until the policy can decide, or a failing engine without a job should try a step.

        Returns False if the engine should exit and has no job.
        """
        with self._change:
            while self._jobs or not self._should_exit:
                if self._turn is None and self._jobs:
                    return True
                if self.faults.failing and not self._jobs:
                    # Nobody sends requests to a server that is not ready.
                    if not self._change.wait(PROBE_S):
                        return True
                    continue
                wait_s = None
                if self._turn is not None and self._turn.wait_until_s is not None:
                    wait_s = max(0.0, self._turn.wait_until_s - time.monotonic())
                if wait_s == 0.0:
                    self._turn = None
                else:
                    self._change.wait(wait_s)
            return False

    def _shutdown(self) -> None:
        failure = self.failure
        with self._change:
            self._state = "stopped" if failure is None else "failed"
            self.running = 0
            for job in tuple(self._jobs):
                self._end(job, Refused(STOPPING) if failure is None else EngineEnded(str(failure)))
        del self._calls
        if callable(self._source):
            # A device that is lost would raise.
            free_memory(of_device=failure is None)

    # -- the torch thread --------------------------------------------------------------------------

    def _take_turn(self) -> bool:
        """Carry out the next turn. Returns False if there is nothing to do."""
        turn = self._next_turn()
        jobs = (*turn.decode, *turn.step)
        started_s = time.monotonic()
        step_s = self._calls.carry_out(turn)
        self.busy_s += time.monotonic() - started_s
        with self._change:
            self._stepping = ()
            for job in jobs:
                if job.work is not None:
                    job.steps_left = job.work.steps_left
                if job.outcome is not None:
                    self._end(job, job.outcome)
                elif job.steps_left == 0:
                    self._turn = None
            if turn.once:
                self._turn = None
        if step_s is not None:
            self.adapter_switches += turn.step[0].lora != self._lora
            self._lora = turn.step[0].lora
            self.on_step(len(turn.step), step_s)
        return bool(jobs)

    def _next_turn(self) -> Turn[Job]:
        """The policy's turn, without cancelled jobs. The jobs to step leave the queue."""
        with self._change:
            now_s = time.monotonic()
            for job in tuple(self._jobs):
                if job.cancelled:
                    self._end(job, Cancelled("cancelled while running"))
            if self._turn is None:
                # No job will come once the engine should exit, so the policy must not wait for one.
                decided_s = math.inf if self._should_exit else now_s
                self._turn = self._turns.turn(tuple(self._jobs), decided_s, self._lora)
            turn = self._calls.within_limits(self._turn)
            self._stepping = turn.step
            self.running = len(turn.step)
            for job in turn.step:
                if job.admitted_s is None:
                    job.admitted_s = now_s
            return turn

    # -- helpers; the caller holds the lock --------------------------------------------------------

    def _decide_anew(self) -> None:
        """Forget the policy's decision and the estimated time of a free place."""
        self._turn = None
        self._place_s = None
        self._change.notify()

    def _copies(self) -> tuple[list[SimulatedTask], list[SimulatedTask]]:
        """All jobs and those in the step under way, to simulate while the torch thread goes on."""
        copies = {job: SimulatedTask.copy_of(job) for job in self._jobs}
        stepping = [copies[job] for job in self._stepping if job in copies]
        return list(copies.values()), stepping

    def _end(self, job: Job, outcome: Image | Exception) -> None:
        """Remove a job from the engine, with its image or with an error."""
        self._jobs.remove(job)
        self._turn = None
        job.outcome = outcome
        if isinstance(outcome, Exception):
            job.future.set_exception(outcome)
        else:
            job.future.set_result(outcome)
