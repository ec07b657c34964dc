"""Queue mode: contestants with an empty store each pass, the bare store without them, and the bare disk below it."""

import os
import re
import sqlite3
import subprocess
import tempfile
import time

from harness import contestants
from harness.load import forge, load_seconds, new_prefix, sign, status_of
from harness.machine import TICKS_PER_SECOND, CoreUse, Refusal, stat_fields, tool, tree

SENDERS = 64
WARM_UP_SECONDS = 1
DELIVERY_SECONDS = 5
SYNC_BYTES = 4096
# The parent of the kernel's own threads.
KERNEL_THREADS = 2
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# What there is to measure: whose, whether its endpoint is paused, and where its store counts the events.
HELD, DELIVERING, PEER = "hookward, held", "hookward", "qhook"
KINDS = {
    HELD: ("hookward", True, "data/queue.sqlite3", "event"),
    DELIVERING: ("hookward", False, "data/queue.sqlite3", "event"),
    PEER: ("qhook", False, "qhook.db", "events"),
}


class Pass:
    """One run of the load against one contestant, what it cost, and what was on disk afterwards."""

    def __init__(self, wrk, seconds, cpu_seconds, delivered, foreign, steal):
        self.requests = wrk["requests"]
        self.refused = wrk["non_2xx"]
        self.socket_errors = wrk["socket_errors"]
        self.per_second = self.requests * 1e6 / wrk["micros"]
        self.p50_micros = wrk["p50_micros"]
        self.p99_micros = wrk["p99_micros"]
        self.cpu_micros = cpu_seconds * 1e6 / max(self.requests, 1)
        self.delivered_per_second = delivered / seconds
        self.foreign = foreign
        self.steal = steal
        self.acknowledged = self.requests
        self.stored = 0

    def fault(self):
        """What the contestant did wrong, or None."""
        if self.requests == 0:
            return "no event was acknowledged"
        if self.refused or self.socket_errors:
            return f"{self.refused} of {self.requests} refused, {self.socket_errors} socket errors"
        if self.stored < self.acknowledged:
            return f"{self.acknowledged} events were acknowledged, {self.stored} are on disk"
        return None

    def disturbance(self, tolerance):
        """What others used of the cores, if that is more than this share of them, or None."""
        if self.foreign > tolerance:
            return f"others used {self.foreign:.0%} of the cores"
        if self.steal > tolerance:
            return f"the hypervisor took {self.steal:.0%} of the cores"
        return None


class Bench:
    """Runs passes, each in a directory of its own on the disk under test."""

    def __init__(self, directory, binaries, upstream, seconds):
        self.directory = directory
        self.binaries = binaries
        self.upstream = upstream
        self.seconds = seconds

    def run(self, kind, load, body, per_second=0):
        """One pass of a kind, at that pace or (0) as fast as it is acknowledged."""
        name, is_held, database, table = KINDS[kind]
        with tempfile.TemporaryDirectory(prefix="hookward-bench-", dir=self.directory) as home:
            one = self.start(name, home)
            try:
                self.check(one, body)
                if is_held:
                    self.hold(os.path.join(home, "hookward", "data"))
                warm = load.run(one, WARM_UP_SECONDS, SENDERS, per_second)
                found = self.measure(one, load, per_second)
            finally:
                one.process.stop()
            found.acknowledged += warm["requests"]
            found.stored = rows(os.path.join(home, name, database), table)
        return found

    def start(self, name, home):
        binary = self.binaries[name]
        if name == "qhook":
            return contestants.start_qhook(home, self.upstream.port, binary)
        return contestants.start_hookward(home, self.upstream.port, binary, "queue.toml", core=None)

    def hold(self, data_dir):
        command = [self.binaries["hookward"], "queue", "pause", "bench", "--data-dir", data_dir]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise Refusal(f"hookward queue pause failed: {done.stderr.strip()}")

    def check(self, one, body):
        """Refuses a contestant that takes a forgery in, or does not deliver a genuine event."""
        before = self.upstream.hits()
        signature = sign(body)
        for what, sent, is_good in [
            ("a forged signature", forge(signature), False),
            ("a missing signature", None, False),
            ("a genuine event", signature, True),
        ]:
            status = status_of(one, body, sent, new_prefix() + "check-000000")
            if (status == 200) != is_good:
                raise Refusal(f"{one.name}, {len(body)} B: {what} was answered {status}")
        deadline = time.monotonic() + DELIVERY_SECONDS
        while (reached := self.upstream.hits() - before) == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        if reached != 1:
            raise Refusal(f"{one.name}, {len(body)} B: one genuine event reached the application {reached} times")

    def measure(self, one, load, per_second):
        """The load, with the bookkeeping of who used the cores around it."""
        hits = self.upstream.hits()
        cores = [CoreUse(core) for core in range(os.cpu_count())]
        cpu, own, start = one.process.cpu_seconds(), not_foreign(self.upstream), time.monotonic()

        wrk = load.run(one, self.seconds, SENDERS, per_second)

        wall = time.monotonic() - start
        cpu, own = one.process.cpu_seconds() - cpu, not_foreign(self.upstream) - own
        after = [CoreUse(core) for core in range(os.cpu_count())]
        busy, steal = (
            sum(getattr(new, what) - getattr(old, what) for new, old in zip(after, cores)) for what in ("busy", "steal")
        )
        room = wall * len(cores)
        foreign = max(busy - cpu - own, 0) / room
        return Pass(wrk, wall, cpu, self.upstream.hits() - hits, foreign, steal / room)


def not_foreign(upstream):
    """CPU seconds of the application, of wrk, of ourselves, and of the kernel's threads: they write to the disk."""
    kernel = 0
    for pid in tree(KERNEL_THREADS):
        try:
            kernel += sum(int(field) for field in stat_fields(pid)[11:13])
        except OSError:
            continue  # ended while we looked
    return load_seconds(upstream) + kernel / TICKS_PER_SECOND


def rows(database, table):
    """How many events a stopped contestant's store holds."""
    connection = sqlite3.connect(database)
    try:
        return connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
    finally:
        connection.close()


def syncs(directory, seconds):
    """What the disk does alone: 4 KiB appended and synced, one at a time. Syncs a second, and p50 and p99 in µs."""
    took = []
    with tempfile.NamedTemporaryFile(prefix="hookward-bench-", dir=directory, buffering=0) as file:
        start = before = time.perf_counter()
        while before - start < seconds:
            file.write(b"\7" * SYNC_BYTES)
            os.fdatasync(file.fileno())
            now = time.perf_counter()
            took.append(now - before)
            before = now
    took.sort()
    return len(took) / (before - start), took[len(took) // 2] * 1e6, took[len(took) * 99 // 100] * 1e6


def bare_store(directory, *asked):
    """The lines that `cargo bench --bench store` prints of the store without a network around it."""
    command = [tool("cargo", "cargo"), "bench", "--quiet", "--locked", "--bench", "store", "--", *asked]
    environment = {**os.environ, "HOOKWARD_BENCH_DIR": directory}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise Refusal(f"cargo bench --bench store failed: {done.stderr.strip()}")
    return done.stdout


def bare_rates(directory):
    """Acknowledgements a second of the bare store with 64 producers, by bytes of body."""
    found = re.findall(r"^ingest, (\d+) B: (\d+) acknowledgements/s", bare_store(directory, "ingest"), re.MULTILINE)
    return {int(body_bytes): float(rate) for body_bytes, rate in found}


def refuse_memory(directory):
    """A file system in memory syncs nothing."""
    kind = subprocess.run(["stat", "-f", "-c", "%T", directory], capture_output=True, text=True).stdout.strip()
    if kind in ("tmpfs", "ramfs"):
        raise Refusal(f"{directory} is in memory ({kind}): name one on a disk with --directory")
    return kind
