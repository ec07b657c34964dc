"""The machine under the benches: tools, ports, pinned processes, and who used which core for how long."""

import os
import platform
import resource
import shutil
import signal
import socket
import subprocess
import time

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
READY_SECONDS = 10
STOP_SECONDS = 5
# Where `cargo static` puts the binary.
SHIPPED = f"target/{platform.machine()}-unknown-linux-gnu/release/hookward"


class Refusal(Exception):
    """Why a bench cannot go on, in one line for the terminal."""


def tool(name, package):
    """Path of an installed program. Daemons live in directories that users may not search."""
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path is None:
        raise Refusal(f"{name} not found: apt-get install {package}")
    return path


def hookward_binary(path):
    if not os.access(path, os.X_OK):
        raise Refusal(f"{path} not found: cargo static, or name the binary with --hookward")
    return os.path.abspath(path)


def free_port():
    """A port of the kernel's choosing, free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def end_on_signals():
    """Ctrl-C and SIGTERM unwind, so that every process and file we made is cleaned up; once begun, that finishes."""
    numbers = (signal.SIGINT, signal.SIGTERM)

    def interrupt(_number, _frame):
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in numbers:
        signal.signal(number, interrupt)


def allow_many_files():
    """Raises the soft limit of open files to the hard one, for us and whatever we start."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class Process:
    """A daemon we started, with its children; pinned to `core` unless that is None."""

    def __init__(self, name, command, log_path, core=None):
        self.name = name
        self.log_path = log_path
        pin = None if core is None else lambda: os.sched_setaffinity(0, {core})
        with open(log_path, "wb") as log:
            # A session of its own: the terminal's Ctrl-C reaches us alone, and we end it in order.
            self.child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=pin,
            )
        self.pid = self.child.pid

    def wait_for_port(self, port):
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            if self.child.poll() is not None:
                raise Refusal(f"{self.name} exited with {self.child.returncode}: {self.log_tail()}")
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.02)
        raise Refusal(f"{self.name} did not listen within {READY_SECONDS} s: {self.log_tail()}")

    def log_tail(self):
        with open(self.log_path, errors="replace") as log:
            return " | ".join(log.read().strip().splitlines()[-5:]) or "it said nothing"

    def stop(self):
        if self.child.poll() is None:
            self.child.terminate()
            try:
                self.child.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                pass
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.child.wait()

    def cpu_seconds(self):
        """User and system time of the whole tree, children already reaped included."""
        ticks = 0
        for pid in tree(self.pid):
            # utime, stime, cutime, cstime: fields 14 to 17 of proc(5)'s list, which starts at 1.
            ticks += sum(int(field) for field in stat_fields(pid)[11:15])
        return ticks / TICKS_PER_SECOND

    def rss_bytes(self):
        return sum(status_bytes(pid, "VmRSS") for pid in tree(self.pid))

    def peak_rss_bytes(self):
        return sum(status_bytes(pid, "VmHWM") for pid in tree(self.pid))


def stat_fields(pid):
    """Fields of /proc/PID/stat from the third on: the second, the name, may hold spaces."""
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()


def status_bytes(pid, field):
    with open(f"/proc/{pid}/status") as status:
        for line in status:
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    return 0


def tree(root):
    """`root` and all its descendants."""
    children = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                parent = int(stat_fields(entry)[1])
            except OSError:
                continue  # ended while we looked
            children.setdefault(parent, []).append(int(entry))
    found = [root]
    for pid in found:
        found.extend(children.get(pid, []))
    return found


class CoreUse:
    """Seconds a core has been busy, and was stolen by the hypervisor, since boot."""

    def __init__(self, core):
        with open("/proc/stat") as stat:
            line = next(line for line in stat if line.startswith(f"cpu{core} "))
        user, nice, system, _idle, _iowait, irq, softirq, steal = (
            int(field) / TICKS_PER_SECOND for field in line.split()[1:9]
        )
        # Interrupts are part of it: a process on loopback pays for its packets in softirq, and the
        # scheduler charges that time to the process as well.
        self.busy = user + nice + system + irq + softirq
        self.steal = steal


def cpu_model():
    with open("/proc/cpuinfo") as info:
        for line in info:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return os.uname().machine
