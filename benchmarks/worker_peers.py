"""No-op steps a second and wake-up latency of workers, beside arq, Celery, RQ and DBOS in the same run.

    pip install arq celery rq dbos
    python benchmarks/worker_peers.py [--steps 2000] [--rounds 3] [--python /path/to/a/python]...

Each library runs in a process of its own, one after the other, in turns; the median of all rounds counts. First it
has so many jobs that do nothing, and works on up to 32 at a time; a step of a flow of this library is one job.
Then it waits for work, and gets a job every 20 to 100 ms: the latency is from before it is sent to its
begin. The CPU time is that of the process and what it forks, without the server's. A library that is not
installed is left out. `--python`, which may be repeated, is where they are, if they do not agree on their
dependencies: arq 0.28 needs another release of redis than Celery and this library.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from catga_store.testing.servers import RedisServer

__all__ = ["ABOUT", "rates_and_latencies"]

ABOUT = {
    "catga_store, asyncio": "uses an `AsyncWorker` and one step per flow",
    "catga_store, threads": "uses a `Worker` and one step per flow",
    "arq": "uses `max_jobs=32` and polls every 0.5 s",
    "Celery": "uses a thread pool and ignores results",
    "RQ": "uses the default worker, which forks for each job",
    "DBOS": "uses a workflow with one step. For the latency measurement, the workflow is sent to a queue",
}

COMMON = """
import json, os, random, sys, threading, time
url, log, jobs, singles = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def done(sent=None):
    os.write(out, f"{time.time()} {sent or 0}\\n".encode())

def lines():
    return open(log).read().splitlines()

def cpu():
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system

before = []

def watch(send):
    before.append(cpu())
    while len(lines()) < jobs:
        time.sleep(0.02)
    with open(log + ".cpu", "w") as file:
        file.write(str(cpu() - before[0]))
    for _ in range(singles):
        time.sleep(random.uniform(0.02, 0.1))
        send(time.time())
    while len(lines()) < jobs + singles:
        time.sleep(0.02)
    os._exit(0)

def watching(send):
    threading.Thread(target=watch, args=(send,), daemon=True).start()
"""

OURS = """
import catga_store as cs

with cs.open_store(url) as store:
    for start in range(0, jobs, 100):
        with store.begin() as session:
            for number in range(start, min(start + 100, jobs)):
                session.add(cs.FlowSnapshot(f"{start}-{number}", state=None))

def send(sent):
    with_sent = cs.FlowSnapshot(str(sent), state=sent)
    sender.create(with_sent)

sender = cs.open_store(url)
watching(send)
"""

PROGRAMS = {
    "catga_store, asyncio": OURS
    + """
import anyio

async def main():
    async with cs.open_async_store(url) as store:
        worker = cs.AsyncWorker(store, concurrency=32)

        @worker.handles(None)
        async def handle(run):
            done(run.flow.state)
            run.complete()

        await worker.run()

anyio.run(main)
""",
    "catga_store, threads": OURS
    + """
with cs.open_store(url) as store:
    worker = cs.Worker(store, concurrency=32)

    @worker.handles(None)
    def handle(run):
        done(run.flow.state)
        run.complete()

    worker.run()
""",
    "arq": """
import asyncio
from arq import create_pool
from arq.connections import RedisSettings
from arq.worker import Worker

settings = RedisSettings.from_dsn(url)

async def job(context, sent=None):
    done(sent)

async def main():
    pool = await create_pool(settings)
    for _ in range(jobs):
        await pool.enqueue_job("job")
    loop = asyncio.get_running_loop()
    watching(lambda sent: asyncio.run_coroutine_threadsafe(pool.enqueue_job("job", sent), loop).result())
    worker = Worker([job], redis_settings=settings, max_jobs=32, keep_result=0, handle_signals=False)
    await worker.async_run()

asyncio.run(main())
""",
    "Celery": """
from celery import Celery

app = Celery("jobs", broker=url)
app.conf.update(task_ignore_result=True, worker_enable_remote_control=False)

@app.task(name="job")
def job(sent=None):
    done(sent)

for _ in range(jobs):
    job.delay()
watching(lambda sent: job.delay(sent))
quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "CRITICAL"]
app.worker_main(["worker", "-P", "threads", "-c", "32", *quiet])
""",
    "RQ": """
if __name__ == "__main__":
    import redis, rq
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    connection = redis.Redis.from_url(url)
    queue = rq.Queue(connection=connection)
    name = os.path.basename(__file__).removesuffix(".py") + ".done"
    for _ in range(jobs):
        queue.enqueue(name, result_ttl=0)
    watching(lambda sent: queue.enqueue(name, sent, result_ttl=0))
    rq.Worker([queue], connection=connection).work(logging_level="CRITICAL")
""",
    "DBOS": """
from dbos import DBOS

DBOS(config={"name": "jobs", "system_database_url": f"sqlite:///{log}.db", "log_level": "CRITICAL"})
@DBOS.step()
def step(sent=None):
    done(sent)

@DBOS.workflow()
def job(sent=None):
    step(sent)

DBOS.launch()
DBOS.register_queue("jobs")
before.append(cpu())
for _ in range(jobs):
    job()
watching(lambda sent: DBOS.enqueue_workflow("jobs", job, sent))
time.sleep(3600)
""",
}
SLOW = {"RQ": 10, "DBOS": 10}
"""By how much fewer jobs a library gets, so that a round takes some seconds."""
CASES = (
    *((name, "Redis") for name in PROGRAMS if name != "DBOS"),
    ("catga_store, asyncio", "SQLite"),
    ("catga_store, threads", "SQLite"),
    ("DBOS", "SQLite"),
)
SINGLES = 40
LONGEST = 300


def one(name: str, place: str, steps: int, pythons: Sequence[str]) -> dict[str, float] | None:
    """Run a library once, where it is installed; `None` if that is nowhere."""
    for python in [sys.executable] if name.startswith("catga_store") else pythons:
        found = _one(name, place, steps, python)
        if found is not None:
            return found

    return None


def _one(name: str, place: str, steps: int, python: str) -> dict[str, float] | None:
    jobs = steps // SLOW.get(name, 1)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        log, program = Path(folder) / "log", Path(folder) / "program.py"
        program.write_text(COMMON + PROGRAMS[name], "utf-8")
        url = f"sqlite:///{folder}/flows.db"
        if place == "Redis":
            url = stack.enter_context(RedisServer()).url

        command = [python, str(program), url, str(log)]
        ran = subprocess.run(
            [*command, str(jobs), str(SINGLES)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=LONGEST,
            check=False,
        )
        if "ModuleNotFoundError" in ran.stderr:
            return None

        assert ran.returncode == 0, ran.stderr
        lines = [line.split() for line in log.read_text("utf-8").splitlines()]
        cpu = float(Path(f"{log}.cpu").read_text("utf-8"))

    times = sorted(float(at) for at, sent in lines if sent == "0")
    late = [float(at) - float(sent) for at, sent in lines if sent != "0"]
    return {
        "rate": (len(times) - 1) / (times[-1] - times[0]),
        "latency": median(late) * 1000,
        "cpu": cpu / jobs * 1e6,
    }


def rates_and_latencies(
    steps: int, rounds: int, pythons: Sequence[str] = (sys.executable,)
) -> dict[str, dict[str, float]]:
    """Return `{library and place: {"rate": steps a second, "latency": ms, "cpu": µs a step}}`, medians."""
    found: dict[str, list[dict[str, float]]] = {}
    for _ in range(rounds):
        for name, place in CASES:
            measured = one(name, place, steps, pythons)
            if measured is not None:
                found.setdefault(f"{name}, {place}", []).append(measured)

    return {
        name: {what: median(one[what] for one in all_of) for what in all_of[0]}
        for name, all_of in found.items()
    }


def main() -> None:
    """Print a row for each library."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--python", action="append")
    arguments = parser.parse_args()
    found = rates_and_latencies(
        arguments.steps, arguments.rounds, arguments.python or (sys.executable,)
    )
    for name, one_of in found.items():
        print(
            f"{name:32} {one_of['rate']:8.0f} steps/s {one_of['latency']:8.1f} ms"
            f" {one_of['cpu']:8.0f} µs of CPU a step"
        )


if __name__ == "__main__":
    main()
