"""Every request that a fleet has taken ends exactly once, whatever happens to it and to replicas.

Hypothesis chooses what happens: requests, answers, errors, cancellations, deaths, returns.
"""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from benchlib.serving.engine.jobs import Cancelled, DoesNotFit, Refused
from benchlib.serving.engine.options import EngineOptions
from benchlib.serving.replicas.fleet import MOST_LOSSES, SUSPECT_LOSSES, Fleet
from benchlib.serving.replicas.replica import LosesReplicas, ReplicaLost
from benchlib.serving.schemas import GenerateRequest
from benchmarks.fakes.replicas import ScriptedReplica, fake_spec

MOST_WAIT = 6
numbers = st.integers(0, 99)


class LifeOfAFleet(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        spec = fake_spec(batching="continuous", max_batch_size=2)
        self.replicas = [ScriptedReplica(str(number), spec) for number in range(3)]
        self.fleet = Fleet(self.replicas, EngineOptions(max_queue=MOST_WAIT))
        self.fleet.start()
        for replica in self.replicas:
            replica.rise()
        self.jobs = []
        self.ends = []  # once for each time that a job has ended
        self.cancelled = set()

    def busy(self):
        return [replica for replica in self.replicas if replica.orders]

    def pick_order(self, number):
        """One of the orders inside, and its replica."""
        busy = self.busy()
        replica = busy[number % len(busy)]
        orders = list(replica.orders)
        return replica, orders[number % len(orders)]

    # -- what happens ------------------------------------------------------------------------------

    @rule(number=numbers)
    def submit(self, number):
        steps = number % 5 + 1
        request = GenerateRequest(prompt="a", num_inference_steps=steps, width=64, height=64)
        try:
            job = self.fleet.submit(request)
        except Refused:
            is_full = self.fleet.waiting >= MOST_WAIT
            assert is_full or not any(view.ready for view in self.fleet.replicas)
            return
        self.jobs.append(job)
        job.future.add_done_callback(lambda _: self.ends.append(job))

    @precondition(busy)
    @rule(number=numbers)
    def make(self, number):
        replica, order = self.pick_order(number)
        replica.end(order)

    @precondition(busy)
    @rule(number=numbers)
    def refuse_for_its_own_fault(self, number):
        replica, order = self.pick_order(number)
        replica.end(order, DoesNotFit((64, 64)))

    @precondition(busy)
    @rule(number=numbers, inside=st.booleans())
    def lose_one_order(self, number, inside):
        replica, order = self.pick_order(number)
        replica.end(order, ReplicaLost("broken", inside=inside))

    @precondition(lambda self: self.jobs)
    @rule(number=numbers, obeys=st.booleans())
    def cancel(self, number, obeys):
        job = self.jobs[number % len(self.jobs)]
        self.fleet.cancel(job)
        self.cancelled.add(job)
        for replica in self.replicas:
            if obeys and job.number in replica.orders and not job.future.done():
                replica.end(job.number, Cancelled("cancelled while running"))

    @rule(number=numbers)
    def die(self, number):
        self.replicas[number % 3].die()

    @rule(number=numbers)
    def rise(self, number):
        self.replicas[number % 3].rise()

    # -- what holds --------------------------------------------------------------------------------

    @invariant()
    def no_job_ends_twice(self):
        assert len(self.ends) == len(set(self.ends))
        assert {job for job in self.jobs if job.future.done()} == set(self.ends)

    @invariant()
    def every_other_job_is_at_one_place(self):
        open_jobs = {job for job in self.jobs if not job.future.done()}
        waiting = self.fleet._waiting
        inside = [job for slot in self.fleet._slots for job in slot.inside.values()]
        assert sorted(map(id, [*waiting, *inside])) == sorted(map(id, open_jobs))
        places = [job.place for job in waiting]
        assert places == sorted(places)
        for slot in self.fleet._slots:
            if slot.ready:
                assert set(slot.inside) <= set(slot.replica.orders)
                assert {id(job) for job in slot.foretold.inside} == {
                    id(job) for job in slot.inside.values()
                }

    @invariant()
    def nobody_waits_beside_an_idle_replica(self):
        ready = [slot for slot in self.fleet._slots if slot.ready]
        if self.fleet._waiting:
            assert all(slot.inside for slot in ready)

    @invariant()
    def a_suspect_is_alone(self):
        for slot in self.fleet._slots:
            if slot.holds_suspect(SUSPECT_LOSSES):
                assert len(slot.inside) == 1

    def teardown(self):
        """In the end all replicas live, and all that is inside is made."""
        for replica in self.replicas:
            replica.rise()
        while self.busy():
            for replica in self.busy():
                replica.end_all()
        self.fleet.stop(drain_s=0.0)
        assert len(self.ends) == len(self.jobs)
        for job in self.jobs:
            error = job.future.exception(0)
            if isinstance(error, LosesReplicas):
                assert job.losses == MOST_LOSSES
            elif isinstance(error, Cancelled):
                assert job in self.cancelled
            else:
                assert error is None or isinstance(error, DoesNotFit)
                assert error is not None or job.made.seed == job.request.seed


LifeOfAFleet.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestLifeOfAFleet = LifeOfAFleet.TestCase
