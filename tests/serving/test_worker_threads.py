"""Our own worker threads: order, results, errors, and their end."""

import gc
import threading
import weakref

import pytest

from benchlib.serving.worker_threads import WorkerThreads


@pytest.fixture
def threads():
    threads = WorkerThreads("test-worker")
    yield threads
    threads.close()


def test_calls_are_carried_out_in_order_on_a_daemon_thread(threads):
    done = []
    futures = [threads.submit(done.append, number) for number in range(20)]
    for future in futures:
        future.result(10)
    assert done == [*range(20)]
    thread = threads.submit(threading.current_thread).result(10)
    assert thread.name == "test-worker-0"
    assert thread.daemon
    assert threads.submit(threads.here).result(10)
    assert not threads.here()


def test_an_error_reaches_the_waiting_caller_and_the_thread_goes_on(threads):
    with pytest.raises(ValueError, match="invalid literal"):
        threads.submit(int, "x").result(10)
    assert threads.submit(int, "7").result(10) == 7


def test_no_result_outlives_its_future(threads):
    class Model:
        pass

    def load():
        model = Model()
        references.append(weakref.ref(model))
        return model

    references = []
    assert threads.submit(load).result(10)
    threads.submit(gc.collect).result(10)
    gc.collect()
    assert references[0]() is None


def test_close_carries_out_what_waits_and_refuses_more():
    threads = WorkerThreads("test-worker", 2)
    gate = threading.Event()
    futures = [threads.submit(gate.wait, 10) for _ in range(4)]
    closing = threading.Thread(target=threads.close)
    closing.start()
    gate.set()
    closing.join(10)
    assert [future.result(0) for future in futures] == [True] * 4
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("test-worker")]
    with pytest.raises(RuntimeError, match="'test-worker' have ended"):
        threads.submit(int)
