"""A fleet's queue, losses, retries and ends. The replicas are scripted: the test ends their orders."""

import pickle
import threading

import pytest

from benchlib.serving.engine.faults import EngineEnded, NotFinite, ShortOfMemory
from benchlib.serving.engine.jobs import Cancelled, DoesNotFit, Refused
from benchlib.serving.engine.options import EngineOptions
from benchlib.serving.engine.simulate import SimulatedTask
from benchlib.serving.replicas.fleet import MOST_LOSSES, SUSPECT_LOSSES, Fleet
from benchlib.serving.replicas.replica import LosesReplicas, Order, ReplicaLost
from benchlib.serving.schemas import BadField, GenerateRequest
from benchmarks.fakes.replicas import InstantReplica, ScriptedReplica, fake_spec, made_for


def ask(prompt="a", seed=None):
    return GenerateRequest(prompt=prompt, num_inference_steps=2, width=64, height=64, seed=seed)


@pytest.fixture
def start():
    fleets = []

    def start(count=2, *, rise=True, spec=None, **options):
        replicas = [ScriptedReplica(str(number), spec) for number in range(count)]
        fleet = Fleet(replicas, EngineOptions(batching="serial", **options))
        fleets.append(fleet)
        fleet.start()
        for replica in replicas if rise else ():
            replica.rise()
        return fleet, replicas

    yield start
    for fleet in fleets:
        fleet.stop(drain_s=0.0)


def prompts(replica):
    return [order.request.prompt for order in replica.orders.values()]


def test_requests_that_no_replica_can_begin_soon_wait_in_the_front(start):
    fleet, (one, two) = start()
    jobs = [fleet.submit(ask(name)) for name in "abc"]
    assert sorted(prompts(one) + prompts(two)) == ["a", "b"]
    assert [job.begun for job in jobs] == [True, True, False]
    assert fleet.waiting == 1
    one.end_all()
    assert jobs[0].future.result(0) is jobs[0].made
    assert prompts(one) == ["c"]
    assert [job.replica for job in jobs] == ["0", "1", "0"]
    assert jobs[0].arrived_s <= jobs[0].admitted_s


def test_another_router_decides_from_now_on(start):
    fleet, (one, two) = start()
    jobs = [fleet.submit(ask(name)) for name in "abcd"]
    assert fleet.waiting == 2
    fleet.route_by("round-robin")
    assert fleet.waiting == 0
    assert len(prompts(one)) == len(prompts(two)) == 2
    assert all(job.begun for job in jobs)
    with pytest.raises(ValueError, match="routing: 'random' is not known"):
        fleet.route_by("random")


def test_a_request_without_a_seed_gets_one_and_keeps_it(start):
    fleet, (one, two) = start()
    job = fleet.submit(ask())
    first = one.orders[job.number]
    one.die()
    second = two.orders[job.number]
    assert first.request.seed == second.request.seed == job.request.seed is not None
    assert first.number != second.number
    two.end_all()
    assert (job.made.seed, job.replica, job.retries) == (job.request.seed, "1", 1)


def test_cancelling_is_at_once_in_the_front_and_passed_on_inside(start):
    fleet, (one,) = start(1)
    inside, waiting = (fleet.submit(ask(name)) for name in "ab")
    fleet.cancel(waiting)
    with pytest.raises(Cancelled):
        waiting.future.result(0)
    fleet.cancel(inside)
    assert one.cancelled == [inside.number]
    assert not inside.future.done()
    one.end(inside.number, Cancelled("cancelled while running"))
    with pytest.raises(Cancelled):
        inside.future.result(0)
    fleet.cancel(inside)
    assert one.cancelled == [inside.number]
    assert fleet.waiting == 0


def test_a_cancelled_request_is_not_made_again_when_its_replica_dies(start):
    fleet, (one, two) = start()
    job = fleet.submit(ask())
    fleet.cancel(job)
    one.die()
    with pytest.raises(Cancelled):
        job.future.result(0)
    assert not two.seen


def test_a_lost_replicas_requests_go_before_those_that_came_later(start):
    spec = fake_spec(batching="continuous", max_batch_size=1)
    fleet, (one, two) = start(spec=spec)
    jobs = {name: fleet.submit(ask(name)) for name in "abcdef"}
    of_one, of_two = prompts(one), prompts(two)
    assert len(of_one) == len(of_two) == 2
    one.die()
    assert prompts(two) == of_two, "the survivor's requests are untouched"
    assert not any(jobs[name].begun for name in of_one)
    two.end_all()
    assert prompts(two) == sorted(of_one)
    two.end_all()
    assert prompts(two) == ["e", "f"]
    two.end_all()
    assert {job.future.result(0).seed for job in jobs.values()}
    assert {name: job.retries for name, job in jobs.items()} == {
        name: int(name in of_one) for name in jobs
    }
    views = fleet.replicas
    assert [(view.losses, view.retries, view.images) for view in views] == [(1, 2, 0), (0, 0, 6)]


def test_a_request_is_the_likely_cause_after_several_losses_the_last_one_alone(start):
    spec = fake_spec(batching="continuous", max_batch_size=2)
    fleet, (one, two) = start(spec=spec)
    two.die()
    culprit, innocent = (fleet.submit(ask(name)) for name in ("culprit", "innocent"))
    for _ in range(MOST_LOSSES - 1):
        assert prompts(one) == ["culprit", "innocent"]
        one.die()
        one.rise()
    assert prompts(one) == ["culprit"]
    newcomer = fleet.submit(ask("newcomer"))
    assert prompts(one) == ["culprit"]
    one.die()
    with pytest.raises(LosesReplicas, match="3 replicas in a row"):
        culprit.future.result(0)
    one.rise()
    assert prompts(one) == ["innocent"]
    one.end_all()
    assert innocent.future.result(0)
    one.end_all()
    assert newcomer.future.result(0)


def test_two_suspects_get_a_replica_each_at_once(start):
    spec = fake_spec(batching="continuous", max_batch_size=2)
    fleet, (one, two) = start(spec=spec)
    two.die()
    for name in "ab":
        fleet.submit(ask(name))
    for _ in range(SUSPECT_LOSSES - 1):
        one.die()
        one.rise()
    two.rise()
    assert (prompts(one), prompts(two)) == (["a", "b"], [])
    one.die()
    assert (prompts(one), prompts(two)) == ([], ["a"])
    one.rise()
    assert (prompts(one), prompts(two)) == (["b"], ["a"])


def test_a_suspect_gets_a_replica_although_others_keep_coming(start):
    spec = fake_spec(batching="continuous", max_batch_size=2)
    fleet, (one, two) = start(spec=spec)
    two.die()
    suspect = fleet.submit(ask("suspect"))
    for _ in range(2):
        one.die()
        one.rise()
    one.die()
    two.rise()
    with pytest.raises(LosesReplicas):
        suspect.future.result(0)

    suspect = fleet.submit(ask("suspect"))
    two.die()
    two.rise()
    others = [fleet.submit(ask("other"))]
    two.die()
    one.rise()
    assert prompts(one) == ["suspect"]
    others.append(fleet.submit(ask("other")))
    two.rise()
    assert prompts(two) == ["other", "other"]
    one.end_all()
    assert suspect.future.result(0)


@pytest.mark.parametrize(
    "refusal", [ReplicaLost("it refuses", inside=False), Refused("the server is stopping")]
)
def test_an_order_that_never_reached_the_model_is_no_loss_of_the_request(start, refusal):
    fleet, (one, two) = start()
    job = fleet.submit(ask())
    one.end(job.number, refusal)
    assert prompts(two) == ["a"]
    two.end_all()
    assert (job.retries, job.replica) == (0, "1")
    assert fleet.state == "degraded"


@pytest.mark.parametrize(
    "error",
    [
        BadField("scheduler", "not for this model"),
        NotFinite("latents"),
        DoesNotFit((64, 64)),
        ShortOfMemory(64, 64),
        ZeroDivisionError("inside the model"),
    ],
)
def test_a_requests_own_error_is_passed_on_and_not_tried_again(start, error):
    fleet, (one, two) = start()
    job = fleet.submit(ask())
    one.end(job.number, error)
    assert job.future.exception(0) is error
    assert not two.seen
    assert fleet.state == "ready"


@pytest.mark.parametrize(
    "error",
    [
        BadField("scheduler", "not for this model"),
        NotFinite("latents"),
        DoesNotFit((64, 128)),
        ShortOfMemory(64, 128),
        LosesReplicas(3),
        Refused("full", retry_after_s=3.0),
        ReplicaLost("killed", inside=False),
    ],
)
def test_errors_cross_to_another_process_as_they_are(error):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


def test_orders_and_images_cross_to_another_process():
    order = Order(1, ask(seed=3), "id", 0.5)
    assert pickle.loads(pickle.dumps(order)) == order
    made = made_for(order, file=(b"file", "text"))
    assert pickle.loads(pickle.dumps(made)) == made


def test_states_tell_how_many_replicas_serve(start):
    fleet, (one, two) = start(rise=False)
    assert (fleet.state, fleet.spec, fleet.schedules) == ("loading", {}, None)
    with pytest.raises(Refused, match="still loading"):
        fleet.submit(ask())
    one.rise()
    assert fleet.state == "degraded"
    assert not fleet.settled.is_set()
    two.rise()
    assert fleet.state == "ready"
    assert fleet.settled.is_set()
    assert fleet.trouble is None
    assert fleet.spec["replicas"] == 2
    assert list(fleet.spec["step_times_by_replica"]) == ["0", "1"]
    two.change(trouble="30 calls have failed")
    assert fleet.state == "degraded"
    assert fleet.trouble == "replica 1: 30 calls have failed"
    jobs = [fleet.submit(ask()) for _ in range(2)]
    assert [job.replica for job in jobs] == ["0", None], "nobody is sent to a replica that fails"
    one.change(trouble="30 calls have failed")
    assert fleet.state == "failing"
    assert jobs[1].replica == "1"
    one.die()
    two.die()
    assert fleet.state == "loading"
    assert [view.ready for view in fleet.replicas] == [False, False]


def test_without_a_replica_newcomers_are_told_when_and_those_inside_wait(start):
    fleet, (one, two) = start()
    job = fleet.submit(ask())
    one.die("its process has ended")
    two.die()
    with pytest.raises(Refused, match="no replica is left") as refusal:
        fleet.submit(ask())
    assert 0 <= refusal.value.retry_after_s < 60
    assert "replica 0: its process has ended" in fleet.trouble
    assert not job.future.done()
    two.rise()
    two.end_all()
    assert job.future.result(0)
    assert [view.restarts for view in fleet.replicas] == [0, 1]


def test_what_was_lost_is_not_used_again_before_it_lives_anew(start):
    fleet, (one,) = start(1)
    job = fleet.submit(ask())
    one.end(job.number, ReplicaLost("the connection has broken"))
    assert not fleet.replicas[0].ready
    one.change(running=1)
    assert not one.orders
    one.rise()
    assert prompts(one) == ["a"]
    one.end_all()
    assert job.future.result(0)


def test_a_new_life_takes_the_requests_of_the_old_one_back_and_ignores_its_answers(start):
    fleet, (one,) = start(1)
    job = fleet.submit(ask())
    former = job.number
    one.rise()
    assert job.number != former
    one.end(former, made_for(one.orders[former], seed=12345))
    assert not job.future.done()
    one.end_all()
    assert job.future.result(0).seed == job.request.seed


def test_the_first_replica_that_cannot_be_loaded_ends_the_start(start):
    fleet, (one, two) = start(rise=False)
    one.rise()
    job = fleet.submit(ask())
    two.fail(OSError("no such model"))
    assert fleet.settled.is_set()
    assert fleet.ended.is_set()
    assert fleet.state == "failed"
    assert isinstance(fleet.failure, OSError)
    with pytest.raises(EngineEnded):
        job.future.result(0)
    with pytest.raises(Refused, match="no such model"):
        fleet.submit(ask())


def test_the_fleet_ends_once_no_replica_can_come_back(start):
    fleet, (one, two) = start()
    job, waiting = fleet.submit(ask()), fleet.submit(ask())
    one.fail(RuntimeError("the card has gone"))
    assert fleet.state == "degraded"
    two.fail(RuntimeError("the card has gone"))
    assert fleet.state == "failed"
    assert fleet.ended.is_set()
    for each in (job, waiting):
        with pytest.raises(EngineEnded, match="the card has gone"):
            each.future.result(0)
    with pytest.raises(EngineEnded):
        fleet.submit(ask())


def test_a_full_queue_refuses_with_the_time_until_a_place(start):
    fleet, (one,) = start(1, max_queue=1)
    for _ in range(2):
        fleet.submit(ask())
    with pytest.raises(Refused, match=r"queue is full \(1 wait\)") as refusal:
        fleet.submit(ask())
    # One is inside, of two steps, an encode and a decode of 1000 s each.
    assert 3900 < refusal.value.retry_after_s <= 4000
    one.end_all()
    assert fleet.submit(ask())


def test_the_wait_is_foretold_over_all_replicas(start):
    fleet, _ = start(2)
    jobs = [fleet.submit(ask()) for _ in range(4)]
    assert fleet.work_s() == pytest.approx(4 * 4000 / 2)
    now_s = jobs[-1].arrived_s
    newcomer = SimulatedTask((64, 64), rows=2, steps_left=2, arrived_s=now_s)
    finished = fleet.foretell(now_s, newcomer)
    done_s = [finished[job].done_s - now_s for job in jobs]
    assert done_s == pytest.approx([4000, 4000, 8000, 8000], abs=1)
    assert finished[newcomer].begun_s - now_s == pytest.approx(8000, abs=1)


def test_without_a_replica_the_wait_is_nothing(start):
    fleet, (one,) = start(1)
    one.die()
    newcomer = SimulatedTask((64, 64), rows=2, steps_left=2, arrived_s=5.0)
    assert fleet.foretell(5.0, newcomer)[newcomer].begun_s == 5.0
    assert fleet.work_s() == 0.0


def submit_for_ever(fleet):
    while True:
        fleet.cancel(fleet.submit(ask()))


def test_stop_lets_those_inside_end_and_drops_the_others(start):
    fleet, (one, two) = start()
    jobs = [fleet.submit(ask()) for _ in range(3)]
    stopping = threading.Thread(target=fleet.stop)
    stopping.start()
    with pytest.raises(Refused, match="the server is stopping"):
        submit_for_ever(fleet)
    for replica in (one, two, one):
        replica.end_all()
    stopping.join(10)
    assert not stopping.is_alive()
    assert all(job.future.result(0) for job in jobs)
    assert one.stopped
    assert two.stopped
    assert fleet.state == "stopped"
    assert fleet.ended.is_set()


def test_dropping_the_jobs_refuses_all_at_once_and_passes_it_on(start):
    fleet, (one,) = start(1)
    inside, waiting = fleet.submit(ask()), fleet.submit(ask())
    fleet.drop_jobs()
    with pytest.raises(Refused, match="stopping"):
        waiting.future.result(0)
    assert one.cancelled == [inside.number]
    fleet.stop(drain_s=0.0)
    with pytest.raises((Refused, Cancelled)):
        inside.future.result(0)


def test_a_fleet_that_never_began_stops_at_once():
    fleet = Fleet([ScriptedReplica("0")])
    fleet.stop()
    fleet.start()
    assert fleet.state == "stopped"
    with pytest.raises(ValueError, match="replicas"):
        Fleet([])


def test_counts_go_on_through_the_lives_of_a_replica(start):
    fleet, (one, two) = start()
    one.change(busy_s=2.0, steps_by_batch={1: 3}, out_of_memory={"step": 1}, running=4)
    two.change(busy_s=1.0, adapter_switches=2, not_finite={"refused": 1}, running=1)
    assert fleet.running == 5
    one.status = type(one.status)(life=1 + one.status.life, busy_s=0.5)
    assert fleet.busy_s == 3.5
    assert fleet.running == 1
    assert fleet.adapter_switches == 2
    assert fleet.faults.out_of_memory["step"] == 1
    assert fleet.faults.not_finite["refused"] == 1


def test_a_replica_that_answers_at_once_empties_a_long_queue_without_recursion():
    replica = InstantReplica("0", fake_spec(0.0))
    held = ScriptedReplica("1")
    fleet = Fleet([held, replica], EngineOptions(max_queue=5000))
    fleet.start()
    replica.spec = None
    replica.change(running=0)
    held.rise()
    jobs = [fleet.submit(ask()) for _ in range(3000)]
    replica.rise()
    held.end_all()
    assert all(job.future.result(10) for job in jobs)
    fleet.stop()


def test_the_calls_of_a_sampler_are_asked_once_and_its_refusal_is_kept(start):
    fleet, (one,) = start(1)
    asked = []
    answer = one.count_calls

    def count_calls(request):
        asked.append(request.scheduler)
        counted = answer(request)
        if request.scheduler == "heun":
            counted = type(counted)()
            counted.set_exception(BadField("scheduler", "this model can't take 'heun'"))
        return counted

    one.count_calls = count_calls
    heun = ask().model_copy(update={"scheduler": "heun"})
    for _ in range(2):
        assert fleet.schedules.count_calls(ask()) == 2
        with pytest.raises(BadField, match="can't take"):
            fleet.schedules.count_calls(heun)
    assert asked == [None, "heun"]
    assert fleet.schedules.knows_calls(ask())
    one.die()
    other = ask().model_copy(update={"num_inference_steps": 9})
    assert fleet.schedules.count_calls(other) == 9
    assert not fleet.schedules.knows_calls(other)
