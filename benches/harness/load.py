"""Signed requests: a few by hand to see that a contestant does its work, then many to see what it costs."""

import hashlib
import hmac
import http.client
import json
import os
import re
import resource
import subprocess
import time
import uuid

from harness.contestants import LOAD_CORE, PROXY_CORE, SECRET
from harness.machine import CoreUse, Refusal, tool

CONNECTIONS = 32
# Requests under way when a pass ends reach the application and are not counted by wrk.
SLACK_REQUESTS = 4 * CONNECTIONS


def event(body_bytes):
    """A `message.created` event of exactly this many bytes."""
    start = b'{"type":"message.created","payload":{"message":{"role":"user","content":"'
    end = b'"}}}'
    text = b"The quick brown fox jumps over the lazy dog. "
    room = body_bytes - len(start) - len(end)
    return start + (text * (room // len(text) + 1))[:room] + end


def sign(body):
    return hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()


def forge(signature):
    """The same with its last digit changed."""
    return signature[:-1] + ("0" if signature[-1] != "0" else "1")


def new_prefix():
    """The start of a key no other pass uses; twelve digits follow, as in a UUID."""
    return str(uuid.uuid4())[:24]


def status_of(contestant, body, signature, key):
    """Posts one event and returns the answer's status."""
    headers = {"Content-Type": "application/json", "Idempotency-Key": key}
    if signature is not None:
        headers[contestant.signature_header] = signature
    connection = http.client.HTTPConnection("127.0.0.1", contestant.port, timeout=10)
    try:
        connection.request("POST", contestant.path, body, headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


class Upstream:
    """The application's own count of the events that reached it."""

    def __init__(self, contestant):
        self.process = contestant.process
        self.port = contestant.port
        self.asked = 0

    def hits(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", "/count")
            text = connection.getresponse().read().decode()
        finally:
            connection.close()
        # "server accepts handled requests" and three numbers; our own questions are among the last.
        self.asked += 1
        return int(re.search(r"^ \d+ \d+ (\d+)", text, re.MULTILINE).group(1)) - self.asked


def check(contestant, upstream, body):
    """Refuses a contestant that lets a forgery or a repeat through, or stops a genuine event."""
    signature = sign(body)
    key = new_prefix() + "check-000000"
    steps = [
        ("a genuine event", signature, key, (200,), 1),
        ("a repeat", signature, key, (200,), 0),
        ("a forged signature", forge(signature), key + "f", (401, 403), 0),
        ("a missing signature", None, key + "m", (401, 403), 0),
        ("the genuine event behind a refused one", signature, key + "f", (200,), 1),
    ]
    for what, sent, name, statuses, hits in steps:
        before = upstream.hits()
        status = status_of(contestant, body, sent, name)
        reached = upstream.hits() - before
        if status not in statuses or reached != hits:
            expected = " or ".join(str(status) for status in statuses)
            raise Refusal(
                f"{contestant.name}, {len(body)} B: {what} was answered {status} (expected {expected}) "
                f"and reached the application {reached} times (expected {hits})"
            )


class Pass:
    """One run of the load against one contestant, and what it cost."""

    def __init__(self, wrk, cpu_seconds, rss_bytes, hits, foreign, steal):
        self.requests = wrk["requests"]
        self.cpu_micros = cpu_seconds * 1e6 / max(self.requests, 1)
        self.per_second = self.requests * 1e6 / wrk["micros"]
        self.p50_micros = wrk["p50_micros"]
        self.p99_micros = wrk["p99_micros"]
        self.non_2xx = wrk["non_2xx"]
        self.socket_errors = wrk["socket_errors"]
        self.rss_bytes = rss_bytes
        self.hits = hits
        self.foreign = foreign
        self.steal = steal

    def fault(self, case):
        """What the contestant did wrong, or None."""
        if self.requests == 0:
            return "no request was answered"
        if self.socket_errors:
            return f"{self.socket_errors} socket errors"
        refused = self.requests if case.forged else 0
        if self.non_2xx != refused:
            return f"{self.non_2xx} of {self.requests} refused, expected {refused}"
        expected = 0 if case.forged else self.requests // (2 if case.load == "twice" else 1)
        slack = 0 if case.forged else SLACK_REQUESTS + expected // 100
        if abs(self.hits - expected) > slack:
            return f"{self.hits} events reached the application, expected {expected}"
        return None

    def disturbance(self, tolerance):
        """Which core others used for more than this share of the pass, or None."""
        for core, share in self.foreign.items():
            if share > tolerance:
                return f"others used {share:.0%} of core {core}"
        for core, share in self.steal.items():
            if share > tolerance:
                return f"the hypervisor took {share:.0%} of core {core}"
        return None


class Load:
    """wrk with one body, pinned beside the application."""

    def __init__(self, parent, body_bytes, load="fresh", forged=False):
        self.load = load
        body = event(body_bytes)
        self.signature = forge(sign(body)) if forged else sign(body)
        self.body_path = os.path.join(parent, "body")
        with open(self.body_path, "wb") as target:
            target.write(body)
        self.wrk = tool("wrk", "wrk")
        self.script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "load.lua")

    def run(self, contestant, seconds, connections=CONNECTIONS, per_second=0):
        """wrk's figures of one run, at that pace or (0) as fast as it is answered; the keys are new to everyone."""
        # fmt: off
        command = [
            self.wrk, "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "5s", "-s", self.script,
            f"http://127.0.0.1:{contestant.port}{contestant.path}",
            "--", self.body_path, contestant.signature_header, self.signature, new_prefix(), self.load,
            str(per_second),
        ]
        # fmt: on
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                start_new_session=True,
                timeout=seconds + 30,
                preexec_fn=lambda: os.sched_setaffinity(0, {LOAD_CORE}),
            )
        except subprocess.TimeoutExpired:
            raise Refusal(f"wrk did not end within {seconds + 30} s") from None
        last = done.stdout.strip().rpartition("\n")[2]
        if done.returncode or not last.startswith("{"):
            raise Refusal(f"wrk failed: {done.stderr.strip() or done.stdout.strip()}")
        return json.loads(last)

    def measure(self, contestant, upstream, seconds):
        """One pass, with the bookkeeping of who used the cores around it."""
        hits = upstream.hits()
        start = time.monotonic()
        cores = {core: CoreUse(core) for core in (PROXY_CORE, LOAD_CORE)}
        proxy = contestant.process.cpu_seconds()
        own = load_seconds(upstream)

        wrk = self.run(contestant, seconds)

        proxy = contestant.process.cpu_seconds() - proxy
        own = load_seconds(upstream) - own
        used = {PROXY_CORE: proxy, LOAD_CORE: own}
        wall = time.monotonic() - start
        foreign, steal = {}, {}
        for core, before in cores.items():
            after = CoreUse(core)
            foreign[core] = max(after.busy - before.busy - used[core], 0) / wall
            steal[core] = (after.steal - before.steal) / wall
        rss = contestant.process.rss_bytes()
        return Pass(wrk, proxy, rss, upstream.hits() - hits, foreign, steal)

    def fill(self, contestant, requests):
        """Sends at least this many events, so that a table of that size is full."""
        done = 0
        while done < requests:
            done += self.run(contestant, 5)["requests"]


def load_seconds(upstream):
    """CPU seconds of all that belongs on the load's core: the application, wrk, and we ourselves."""
    used = upstream.process.cpu_seconds()
    for who in (resource.RUSAGE_CHILDREN, resource.RUSAGE_SELF):
        usage = resource.getrusage(who)
        used += usage.ru_utime + usage.ru_stime
    return used
