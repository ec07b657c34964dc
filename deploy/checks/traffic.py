"""What stands on both sides of hookward in these tests: an application, and the process itself."""

import http.client
import http.server
import json
import os
import pathlib
import signal
import subprocess
import threading
import time
import urllib.request

SECRET = "a-secret-for-checking-only"
PATIENCE_SECONDS = 60


class Application(http.server.ThreadingHTTPServer):
    """Answers with the status that its path ends in, or 200, and remembers what it was sent."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Answer)
        self.events = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class _Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.events.append(self.headers["Hookward-Event-Id"])
        last = self.path.rsplit("/", 1)[-1]
        self.send_response(int(last) if last.isdigit() else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


class Hookward:
    """The program, running with a configuration, at ports of the system's choice."""

    def __init__(self, place, config):
        self.file = pathlib.Path(place) / "hookward.toml"
        self.file.write_text(config)
        self.log = pathlib.Path(place) / "log"
        environment = {"SECRET": SECRET, "HOOKWARD_CONFIG": str(self.file)}
        with open(self.log, "w") as log:
            self.process = subprocess.Popen([os.environ["HOOKWARD"], "serve"], env=environment, stderr=log)
        wait_for("hookward is ready", lambda: '"message":"ready"' in self.log.read_text())
        said = [json.loads(line) for line in self.log.read_text().splitlines()]
        self.addresses = {line["listener"]: line["address"] for line in said if line["message"] == "listening"}

    def send(self, path, *more):
        """Sends signed events by our own command; what it prints."""
        url = f"http://{self.addresses['public']}{path}"
        command = [os.environ["HOOKWARD"], "send", "message.created", "--to", url, "--secret-env", "SECRET", *more]
        return subprocess.run(command, env={"SECRET": SECRET}, capture_output=True, text=True).stdout

    def reload(self):
        self.process.send_signal(signal.SIGHUP)

    def metrics(self):
        return get(self.addresses["admin"], "/metrics")

    def end(self):
        self.process.terminate()
        return self.process.wait(PATIENCE_SECONDS)


def get(address, path):
    with urllib.request.urlopen(f"http://{address}{path}", timeout=PATIENCE_SECONDS) as answer:
        return answer.read().decode()


def wait_for(what, is_so):
    """Waits for a fact; the limit only ends a test that hangs."""
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            if is_so():
                return
        except (OSError, http.client.HTTPException):
            pass
        if time.monotonic() > end:
            raise SystemExit(f"never: {what}")
        time.sleep(0.1)
