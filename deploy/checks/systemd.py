"""The package in a real systemd: installed, started, reloaded, restarted under load, watched, upgraded, removed.

Closes with the number of checks that passed and failed; exit 1 when one failed.
"""

import json
import os
import pathlib
import subprocess
import sys

from image import APPLICATION, DEBIAN, podman
from score import Score
from traffic import SECRET, wait_for

DEPLOY = pathlib.Path(__file__).parent.parent
RESTARTS = 20
CONFIG = "/etc/hookward/hookward.toml"
RELAY = """
[endpoints.relay]
path = "/relay"
upstream = "http://127.0.0.1:3000/"
secrets = [{ name = "main", file = "$CREDENTIALS_DIRECTORY/secret_tinytalk" }]
"""


def vm(*words, given=None):
    """Runs a command in the machine: exit code and what it said."""
    done = podman("exec", "-i", "vm", *words, given=given, may_fail=True)
    return done.returncode, (done.stdout + done.stderr).strip()


def must(*words, given=None):
    code, said = vm(*words, given=given)
    if code:
        raise SystemExit(f"{' '.join(words)}: {said}\n{vm('journalctl', '-n', '40', '--no-pager')[1]}")
    return said


def shell(line):
    return must("sh", "-c", line)


def shown(what, unit="hookward.service"):
    return must("systemctl", "show", "--value", "-p", what, unit)


def send(path, *more):
    send = ["hookward", "send", "message.created", "--json", "--secret-env", "SECRET"]
    said = vm("env", f"SECRET={SECRET}", *send, "--to", f"http://127.0.0.1:8080{path}", *more)[1]
    return [json.loads(line)["outcome"] for line in said.splitlines()]


def install(score):
    must("dpkg", "-i", "/root/hookward.deb")
    score.count(vm("systemctl", "is-active", "hookward.service")[0] != 0, "it waits for a secret before it starts")
    must("sh", "-c", "umask 077 && cat > /etc/hookward/secrets/tinytalk", given=SECRET)
    must("sh", "-c", "cat > /root/application.py", given=APPLICATION)
    must("sh", "-c", "cat > /root/restarts.py", given=(DEPLOY / "checks" / "restarts.py").read_text())
    must("systemd-run", "-q", "--unit=app", "python3", "/root/application.py")
    must("systemctl", "enable", "--now", "hookward.socket", "hookward.service")
    score.count(shown("StatusText") == "endpoints: 1", f"READY=1 with a status: {shown('StatusText')}")
    score.count(send("/webhooks/tinytalk") == ["queued"], "a genuine event is queued")
    wait_for("it is delivered", lambda: "/hooks/tinytalk" in must("journalctl", "-u", "app", "--no-pager"))
    score.count("crm" in must("hookward", "queue", "stats"), "root can ask what is on disk")
    _, listed = vm("sh", "-c", "ls -ld /var/lib/private/hookward /etc/hookward/secrets/tinytalk")
    score.count(all(line[4:10] == "------" for line in listed.splitlines()), f"others read it: {listed}")


def units(score):
    files = ["/lib/systemd/system/hookward.service", "/lib/systemd/system/hookward.socket"]
    _, said = vm("systemd-analyze", "verify", *files)
    score.count("hookward" not in said, f"systemd-analyze verify: {said}")
    shell(f"mkdir -p /root/t && sed 's/^UMask/UMaks/' {files[0]} > /root/t/hookward.service")
    _, said = vm("systemd-analyze", "verify", "/root/t/hookward.service")
    score.count("UMaks" in said, "systemd-analyze verify takes an unknown key")
    code, said = vm("systemd-analyze", "security", "--no-pager", "--threshold=20", "hookward.service")
    print(f"systemd: {said.splitlines()[-1].split('hookward.service: ')[-1]}")
    score.count(code == 0, f"systemd-analyze security: {said}")
    shell(f"sed '/^SystemCallFilter/d; /^CapabilityBoundingSet/d; /^DynamicUser/d' {files[0]} > /root/t/hookward.service")
    twin = ["--offline=true", "--threshold=20", "/root/t/hookward.service"]
    code, said = vm("systemd-analyze", "security", "--no-pager", *twin)
    score.count(code != 0, f"systemd-analyze security takes a unit without its filters: {said}")


def reloads(score):
    before = shown("MainPID")
    must("sh", "-c", f"cat >> {CONFIG}", given=RELAY)
    check = ["systemd-run", "-q", "--wait", "--pipe", "-p", "DynamicUser=yes"]
    check += ["-p", "LoadCredential=secret:/etc/hookward/secrets", "hookward", "check"]
    score.count("endpoints.relay" in must(*check), "the configuration can be checked before it is in effect")
    must("systemctl", "reload", "hookward")
    wait_for("the reload took effect", lambda: shown("StatusText") == "endpoints: 2")
    score.count(send("/relay") == ["forwarded"], "a new endpoint relays")
    shell(f"cp {CONFIG} /root/good && echo nonsense >> {CONFIG}")
    code, _ = vm(*check)
    score.count(code == 2, f"a check refuses what is wrong: {code}")
    must("systemctl", "reload", "hookward")
    wait_for("the reload was refused", lambda: shown("StatusText").startswith("configuration refused"))
    score.count(send("/relay") == ["forwarded"], "the running configuration stays")
    shell(f"cp /root/good {CONFIG}")
    must("systemctl", "reload", "hookward")
    wait_for("the reload took effect", lambda: shown("StatusText") == "endpoints: 2")
    score.count(shown("MainPID") == before, "no reload was a restart")


def under_load(act):
    """What senders saw while something was done to the service."""
    shell("rm -f /root/stop")
    command = ["podman", "exec", "vm", "python3", "/root/restarts.py", "8080", SECRET, "/root/stop"]
    load = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        act()
    finally:
        shell("touch /root/stop")
    return json.loads(load.communicate()[0])


def restarts(score):
    def restart():
        for _ in range(RESTARTS):
            must("systemctl", "restart", "hookward.service")

    seen = under_load(restart)
    print(f"systemd: {RESTARTS} restarts, {seen['sent']} requests answered, {seen['failed']} failed")
    score.count(not seen["failed"] and seen["sent"] > 100 * RESTARTS, f"{RESTARTS} restarts under load: {seen}")

    def close():
        must("systemctl", "stop", "hookward.socket", "hookward.service")
        must("systemctl", "start", "hookward.service")

    seen = under_load(close)
    score.count(bool(seen["failed"]), f"a port that was closed goes unnoticed: {seen}")


def watchdog(score):
    shell("mkdir -p /run/systemd/system/hookward.service.d")
    must("sh", "-c", "cat > /run/systemd/system/hookward.service.d/w.conf", given="[Service]\nWatchdogSec=2s\n")
    shell("systemctl daemon-reload && systemctl restart hookward.service")
    before = shown("MainPID")
    wait_for("it is fed", lambda: shown("WatchdogTimestampMonotonic") not in ("0", ""))
    shell(f"kill -STOP {before}")
    wait_for("a hung process is started anew", lambda: shown("NRestarts") == "1" and shown("ActiveState") == "active")
    score.count(shown("MainPID") != before, "the watchdog ends what hangs")
    score.count(send("/relay") == ["forwarded"], "it serves again")
    shell("rm -r /run/systemd/system/hookward.service.d && systemctl daemon-reload && systemctl restart hookward.service")


def package(score):
    before = shown("MainPID")
    seen = under_load(lambda: must("dpkg", "-i", "/root/hookward.deb"))
    score.count(shown("MainPID") != before, "an upgrade starts the new version")
    score.count(not seen["failed"] and seen["sent"] > 0, f"an upgrade under load: {seen}")
    score.count(send("/relay") == ["forwarded"], "an upgrade keeps the configuration")
    place = "/var/lib/hookward"
    must("hookward", "queue", "backup", f"{place}/backup.sqlite3")
    must("systemctl", "stop", "hookward.service")
    shell(f"rm {place}/data/* && mv {place}/backup.sqlite3 {place}/data/queue.sqlite3")
    must("systemctl", "start", "hookward.service")
    score.count(send("/webhooks/tinytalk", "--key", "0-0") == ["duplicate"], "a restored backup knows its keys")
    must("dpkg", "-r", "hookward")
    score.count(vm("systemctl", "is-active", "hookward.socket")[0] != 0, "removed, it listens no more")
    must("dpkg", "-P", "hookward")
    score.count(vm("ls", "/etc/hookward")[0] != 0, "purged, nothing is left of its configuration")
    score.count(vm("ls", "/var/lib/private/hookward/data/queue.sqlite3")[0] == 0, "purged, its events are still there")


def clean():
    podman("rm", "-f", "-i", "-t", "0", "vm", may_fail=True)
    podman("volume", "rm", "-f", "vm-disk", may_fail=True)


def main():
    score = Score("systemd")
    clean()
    # A disk of its own: a container's layers are none that a queue may be on.
    disk = "--volume=vm-disk:/var/lib"
    podman("run", "-d", "--name=vm", "--privileged", "--systemd=always", "--network=none", disk, DEBIAN, "/sbin/init")
    try:
        wait_for("systemd is up", lambda: vm("systemctl", "is-system-running")[1] in ("running", "degraded"))
        # A machine's root is shared, a container's is not; credentials are mounted through it.
        must("mount", "--make-rshared", "/")
        podman("cp", os.environ["DEB"], "vm:/root/hookward.deb")
        for step in (install, units, reloads, restarts, watchdog, package):
            step(score)
    finally:
        clean()
    return score.close()


if __name__ == "__main__":
    sys.exit(main())
