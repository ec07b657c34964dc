"""Strangers: connections that are slow, connections that are many, requests that are made up. Each runs in a process
of its own, on the load's core, for a bounded time, and reports what happened to it."""

import errno
import multiprocessing
import os
import random
import select
import socket
import struct
import time

from harness.contestants import LOAD_CORE

SLOW_CONNECTIONS = 2000
# How often a slow connection does a little, and how many at most are opened in one turn of the loop.
DRIP_SECONDS = 0.5
OPENED_AT_ONCE = 50
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
HEAD = b"POST /hook HTTP/1.1\r\nHost: a\r\nTinyTalk-Signature: " + b"0" * 64 + b"\r\n"
# What each kind sends at first, and again and again. The reader asks and reads nothing.
KINDS = {
    "silent socket": (b"", b""),
    "lone byte": (b"P", b""),
    "slow head": (HEAD, b"X-A: b\r\n"),
    "slow body": (HEAD + b"Content-Length: 100000\r\n\r\n", b"x"),
    "slow reader": (b"", b"GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n" * 100),
}
METHODS = ("POST", "POST", "POST", "GET", "PUT", "DELETE", "BREW", "M-SEARCH")


class Aside:
    """A function of ours in a process of its own; `stop` ends it and gives back what it returned."""

    def __init__(self, work, *arguments):
        context = multiprocessing.get_context("fork")
        self.ending = context.Event()
        self.results, sender = context.Pipe(duplex=False)
        self.process = context.Process(target=self.run, args=(sender, work, arguments))
        self.process.start()

    def run(self, sender, work, arguments):
        os.sched_setaffinity(0, {LOAD_CORE})
        sender.send(work(self.ending, *arguments))

    def stop(self):
        self.ending.set()
        result = self.results.recv() if self.results.poll(30) else None
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
        return result


class Slow:
    """One slow connection: since when it is there, and since when it could send no more."""

    def __init__(self, kind, address):
        self.kind = kind
        self.socket = socket.socket()
        self.socket.setblocking(False)
        if kind == "slow reader":
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.connect_ex(address)
        self.since = time.monotonic()
        self.left, self.more = KINDS[kind]
        self.is_blocked = False

    def drip(self):
        """Sends a little on; whether the connection is still there."""
        bytes_ = self.left or self.more
        if not bytes_:
            return True
        try:
            sent = self.socket.send(bytes_)
        except BlockingIOError:
            if not self.is_blocked:
                self.is_blocked = True
                self.since = time.monotonic()
            return True
        except OSError as error:
            return error.errno == errno.ENOTCONN
        self.left = self.left[sent:]
        return True


def slow(ending, port):
    """Keeps SLOW_CONNECTIONS slow connections open. By kind: how many ended, and the longest time one lasted."""
    address = ("127.0.0.1", port)
    poll = select.epoll()
    open_ = {}
    kinds = list(KINDS)
    ended = dict.fromkeys(kinds, 0)
    longest = dict.fromkeys(kinds, 0.0)
    opened = 0
    most = 0

    def over(number):
        gone = open_.pop(number)
        ended[gone.kind] += 1
        longest[gone.kind] = max(longest[gone.kind], time.monotonic() - gone.since)
        gone.socket.close()

    next_drip = time.monotonic()
    while not ending.is_set():
        for _ in range(min(SLOW_CONNECTIONS - len(open_), OPENED_AT_ONCE)):
            one = Slow(kinds[opened % len(kinds)], address)
            opened += 1
            open_[one.socket.fileno()] = one
            # A reader that does not read sees only that it was thrown out.
            wanted = select.EPOLLERR if one.kind == "slow reader" else select.EPOLLIN
            poll.register(one.socket.fileno(), wanted)
        most = max(most, len(open_))
        for number, _events in poll.poll(0.02):
            one = open_[number]
            try:
                if one.kind == "slow reader" or not one.socket.recv(4096):
                    over(number)
            except BlockingIOError:
                pass
            except OSError:
                over(number)
        if time.monotonic() >= next_drip:
            next_drip = time.monotonic() + DRIP_SECONDS
            for number in [number for number, one in open_.items() if not one.drip()]:
                over(number)
    now = time.monotonic()
    for one in open_.values():
        longest[one.kind] = max(longest[one.kind], now - one.since)
        one.socket.close()
    return {"ended": ended, "longest": longest, "most": most}


def connects(ending, port, per_second):
    """Connects and resets, at this pace as far as one core goes; how many a second it came to."""
    address = ("127.0.0.1", port)
    began = time.monotonic()
    done = 0
    while not ending.is_set():
        due = int((time.monotonic() - began) * per_second)
        for _ in range(min(due - done, 200)):
            one = socket.socket()
            one.setblocking(False)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            one.connect_ex(address)
            one.close()
            done += 1
        if due <= done:
            time.sleep(0.0005)
    return done / (time.monotonic() - began)


def made_up(port, requests):
    """Sends this many requests with paths, keys, methods and header names of chance, each signed with nothing."""
    chance = random.Random(requests)
    connection = None
    for _ in range(requests):
        word = f"{chance.getrandbits(48):x}"
        path = f"/{word}" if chance.random() < 0.7 else f"/hook?{word}"
        request = (
            f"{chance.choice(METHODS)} {path} HTTP/1.1\r\nHost: {word}.example\r\nIdempotency-Key: {word}\r\n"
            f"X-{word}: {word}\r\nTinyTalk-Signature: {chance.getrandbits(256):064x}\r\nContent-Length: 2\r\n\r\n{{}}"
        )
        if connection is None:
            connection = socket.create_connection(("127.0.0.1", port), timeout=10)
        connection.sendall(request.encode())
        if not take_answer(connection):
            connection.close()
            connection = None
    if connection:
        connection.close()


def take_answer(connection):
    """Reads one answer; whether the connection goes on."""
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += received(connection)
    head, _, body = answer.partition(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    while len(body) < int(fields[b"content-length"]):
        body += received(connection)
    return fields.get(b"connection") != b"close"


def received(connection):
    part = connection.recv(65536)
    if not part:
        raise ConnectionError("closed in the middle of an answer")
    return part
