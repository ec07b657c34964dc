"""The image: what is in it, what it does when it is run strictly, and as the sidecar of a pod.

Closes with the number of checks that passed and failed; exit 1 when one failed.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import yaml

from score import Score
from traffic import SECRET, wait_for

DEPLOY = pathlib.Path(__file__).parent.parent
IMAGE, DEBIAN = "hookward:0.1.0", "docker.io/library/debian:bookworm-slim"
LIMIT_BYTES = 15 * 1024 * 1024
STRICT = ["--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--pids-limit=64", "--memory=256m"]

CONFIG = """
data_dir = "/var/lib/hookward/data"
[endpoints.relay]
path = "/relay"
upstream = "http://127.0.0.1:3000/"
connect_retry = "10s"
secrets = [{ name = "main", file = "/etc/hookward/secret" }]
[endpoints.queue]
path = "/queue"
upstream = "http://127.0.0.1:3000/"
mode = "queue"
secrets = [{ name = "main", file = "/etc/hookward/secret" }]
"""

APPLICATION = """
import http.server
class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        print(self.path, self.headers["Hookward-Event-Id"], flush=True)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *_):
        pass
class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 1024
Server(("0.0.0.0", 3000), Answer).serve_forever()
"""


def podman(*words, given=None, may_fail=False):
    done = subprocess.run(["podman", *map(str, words)], input=given, capture_output=True, text=True)
    if done.returncode and not may_fail:
        raise SystemExit(f"podman {' '.join(map(str, words))}: {done.stderr}")
    return done.stdout if not may_fail else done


def send(container, path, *more):
    """Sends events from inside the container: outcome and id, as our own command prints them."""
    words = ["hookward", "send", "message.created", "--json", "--to", f"http://127.0.0.1:8080{path}"]
    env = f"--env=SECRET={SECRET}"
    done = podman("exec", env, container, *words, "--secret-env", "SECRET", *more, may_fail=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def outcomes(*words):
    return [(answer["status"], answer["outcome"]) for answer in send(*words)]


def content(score):
    about = json.loads(podman("image", "inspect", IMAGE))[0]
    score.count(about["Size"] <= LIMIT_BYTES, f"the image has {about['Size']} bytes")
    print(f"image: {about['Size']} bytes")
    score.count(about["Config"]["User"] == "65532:65532", "it runs as 65532")
    score.count(about["Healthcheck"]["Test"] == ["CMD", "hookward", "healthcheck"], "it has its own healthcheck")
    name = podman("create", IMAGE).strip()
    with tempfile.NamedTemporaryFile() as archive:
        podman("export", "-o", archive.name, name)
        listed = subprocess.run(["tar", "tf", archive.name], capture_output=True, text=True).stdout.split()
    podman("rm", name)
    files = {file for file in listed if not file.endswith("/")}
    mounted = {"etc/hostname", "etc/hosts", "etc/resolv.conf", "etc/mtab", "run/.containerenv"}
    ours = {"usr/bin/hookward", "etc/ssl/certs/ca-certificates.crt"}
    score.count(files - mounted == ours, f"files in it: {files - mounted}")


def run_strictly(score, place):
    folder = pathlib.Path(place)
    (folder / "hookward.toml").write_text(CONFIG)
    (folder / "secret").write_text(SECRET)
    (folder / "application.py").write_text(APPLICATION)
    for file in folder.iterdir():
        file.chmod(0o644)
    folder.chmod(0o755)
    volumes = [f"--volume={place}:/etc/hookward:ro", "--volume=hookward-test:/var/lib/hookward"]
    podman("run", "-d", "--name=gate", "--network=none", *STRICT, *volumes, IMAGE)
    wait_for("it is healthy", lambda: podman("healthcheck", "run", "gate", may_fail=True).returncode == 0)
    nobody = podman("exec", "gate", "hookward", "healthcheck", "--admin", "127.0.0.1:1", may_fail=True)
    score.count(nobody.returncode == 1, "healthcheck fails where nobody answers")
    shell = podman("exec", "gate", "sh", "-c", "true", may_fail=True)
    score.count(shell.returncode != 0, "there is no shell")

    first = send("gate", "/queue", "--key", "kept")
    score.count([a["outcome"] for a in first] == ["queued"], f"the application is away: {first}")
    podman("stop", "gate")
    code = podman("inspect", "gate", "--format", "{{.State.ExitCode}}").strip()
    score.count(code == "0", f"told to end, it ends with {code}")
    podman("start", "gate")
    wait_for("it is healthy again", lambda: podman("healthcheck", "run", "gate", may_fail=True).returncode == 0)
    run = ["python3", "/etc/hookward/application.py"]
    podman("run", "-d", "--name=app", "--network=container:gate", f"--volume={place}:/etc/hookward:ro", DEBIAN, *run)
    wait_for("what waited is delivered", lambda: first[0]["event_id"] in podman("logs", "app"))

    score.count(outcomes("gate", "/relay") == [(200, "forwarded")], "a genuine event is relayed")
    score.count(outcomes("gate", "/relay", "--tamper") == [(401, "rejected")], "a forged one is refused")
    twice = outcomes("gate", "/relay", "--repeat", "2")
    score.count(twice == [(200, "forwarded"), (200, "duplicate")], f"a copy is known: {twice}")
    again = outcomes("gate", "/queue", "--key", "kept")
    score.count(again == [(200, "duplicate")], f"a copy is known after a restart: {again}")
    stats = podman("exec", "gate", "hookward", "queue", "stats")
    score.count("queue" in stats, f"an operator can ask inside: {stats}")


def play_the_sidecar(score, place):
    """The pod of base/sidecar, as far as podman plays it."""
    (pathlib.Path(place) / "Containerfile").write_text(
        f'FROM {DEBIAN}\nCOPY application.py /application.py\nCMD ["python3", "/application.py"]\n'
    )
    podman("build", "-q", "--pull=never", "--tag=registry.example/app:1", place)
    documents = list(yaml.safe_load_all((DEPLOY / "kubernetes" / "base" / "sidecar" / "sidecar.yaml").read_text()))
    (config,) = (d for d in documents if d["kind"] == "ConfigMap")
    (deployment,) = (d for d in documents if d["kind"] == "Deployment")
    spec = deployment["spec"]["template"]["spec"]
    # Debian 12's podman mounts the values of a Secret as they are written, in base64: a ConfigMap stands in.
    secret = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "app-secrets"}, "data": {"tinytalk": SECRET}}
    (volume,) = (volume for volume in spec["volumes"] if volume.pop("secret", None))
    volume["configMap"] = {"name": "app-secrets"}
    spec["containers"] = spec.pop("initContainers") + spec["containers"]
    for container in spec["containers"]:
        for unplayed in ("ports", "restartPolicy", "startupProbe", "readinessProbe", "livenessProbe", "lifecycle"):
            container.pop(unplayed, None)
    playable = yaml.safe_dump_all([config, secret, deployment])
    podman("kube", "play", "--network=none", "-", given=playable)
    try:
        gate, app = "app-pod-0-hookward", "app-pod-0-app"
        wait_for("the pod is ready", lambda: podman("exec", gate, "hookward", "healthcheck", may_fail=True).returncode == 0)
        sent = send(gate, "/webhooks/tinytalk")
        score.count([a["outcome"] for a in sent] == ["forwarded"], f"a genuine event passes the sidecar: {sent}")
        score.count(bool(sent) and sent[0]["event_id"] in podman("logs", app), "the application was sent it")
        forged = outcomes(gate, "/webhooks/tinytalk", "--tamper")
        score.count(forged == [(401, "rejected")], f"the sidecar refuses a forged one: {forged}")
        score.count(len(podman("logs", app).split()) == 2, "the application was sent nothing else")
    finally:
        podman("kube", "down", "-", given=playable)


def clean():
    for name in ("app", "gate"):
        podman("rm", "-f", "-i", "-t", "0", name, may_fail=True)
    for name in ("hookward-test", "app-hookward", "app-secrets"):
        podman("volume", "rm", "-f", name, may_fail=True)


def main():
    score = Score("image")
    clean()
    with tempfile.TemporaryDirectory() as place:
        try:
            content(score)
            run_strictly(score, place)
            play_the_sidecar(score, place)
        finally:
            clean()
    return score.close()


if __name__ == "__main__":
    sys.exit(main())
