"""The nouns of the browser's test: hookward, a sender, an application."""

import hashlib
import hmac
import http.client
import json
import os
import pathlib
import queue
import shutil
import subprocess
import tempfile
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "a-token-of-our-own-0123456789"
SECRET = "a-secret-of-thirty-two-bytes-ab!"
# Longer than anything here takes; only a hang reaches it.
HANG = 60


def eventually(what, holds):
    """Waits until something holds, looking again and again."""
    end = time.monotonic() + HANG
    while True:
        found = holds()
        if found:
            return found
        assert time.monotonic() < end, f"never happened: {what}"
        time.sleep(0.05)


class Application:
    """What stands behind: it takes events, or answers as it is told, or is gone."""

    def __init__(self):
        self.status = 200
        self.got = queue.Queue()
        self.server = None
        self.port = 0
        self.start()

    def start(self):
        application = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                application.got.put((self.headers, body))
                answer = b'{"taken":true}'
                self.send_response(application.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_):
                pass

        ThreadingHTTPServer.daemon_threads = True
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()

    def next(self):
        return self.got.get(timeout=HANG)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/hooks"


class Hookward:
    """The program, on disk and with capturing."""

    def __init__(self, application):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="hookward-browser-"))
        config = self.dir / "hookward.toml"
        config.write_text(f"""
data_dir = "{self.dir}/data"
[server]
listen = ["127.0.0.1:0"]
threads = 1
[admin]
listen = ["127.0.0.1:0"]
token = {{ env = "TOKEN" }}
upstream_allow = ["127.0.0.0/8"]
capture = {{ events = 2000, bytes = "32MiB" }}
[endpoints.crm]
path = "/webhooks/crm"
upstream = "{application.url}"
secrets = [{{ name = "2026-11", env = "SECRET" }}]
description = "leads into the CRM"
source = "dashboard"
quarantine = "1MiB"
[endpoints.leads]
path = "/webhooks/leads"
upstream = "{application.url}"
secrets = [{{ name = "2026-11", env = "SECRET" }}, {{ name = "2026-05", env = "SECRET", not_after = "2099-01-01T00:00:00Z" }}]
mode = "queue"
events = ["contact.created", "contact.lead.updated"]
description = "new leads, delivered when the application can take them"
source = "Pabbly Connect"
[endpoints.leads.queue]
retry = [{", ".join(['"200ms"'] * 60)}]
""")
        env = {"TOKEN": TOKEN, "SECRET": SECRET, "PATH": os.environ["PATH"]}
        self.process = subprocess.Popen(
            [os.environ["HOOKWARD"], "serve", "--config", str(config)],
            env=env, stderr=subprocess.PIPE, text=True)
        addresses = {}
        for line in self.process.stderr:
            said = json.loads(line)["fields"] if "fields" in line else json.loads(line)
            if said.get("message") == "listening":
                addresses[said["listener"]] = said["address"]
            if said.get("message") == "ready":
                break
        self.public, self.admin = addresses["public"], addresses["admin"]
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def end(self):
        self.process.terminate()
        assert self.process.wait(HANG) == 0
        shutil.rmtree(self.dir)

    def api(self, method, path, body=None):
        connection = http.client.HTTPConnection(self.admin, timeout=HANG)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        connection.request(method, f"/api/v1{path}", body and json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read()
        assert answer.status < 300, f"{method} {path}: {answer.status} {text}"
        return json.loads(text) if text else None

    def send(self, path, body, secret=SECRET, headers=(), key=None):
        """Sends an event as a sender does; the status and the event's id."""
        if isinstance(body, (dict, list)):
            body = json.dumps(body)
        if isinstance(body, str):
            body = body.encode("utf-8", "surrogatepass")
        tag = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
        connection = http.client.HTTPConnection(self.public, timeout=HANG)
        connection.putrequest("POST", path)
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(len(body)))
        connection.putheader("TinyTalk-Signature", tag)
        connection.putheader("Idempotency-Key", key or str(uuid.uuid4()))
        for name, value in headers:
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        answer.read()
        return answer.status, answer.headers["hookward-event-id"]
