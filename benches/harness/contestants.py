"""The proxies side by side, and the application behind them: configuration, start, end."""

import base64
import getpass
import os
import re
import subprocess

from harness.machine import Process, Refusal, free_port, tool

PROXY_CORE = 0
LOAD_CORE = 1
SECRET = "a-secret-for-benches-of-40-bytes-length!"
TEMPLATES = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "contestants")
# What its header buffer of 32 KiB takes in one piece, headers included.
UPSTREAM_AT_ONCE_BYTES = 16 * 1024
# API and dashboard open, and requests kept for them.
CAPTURING = 'token = {{ file = "{}/secret" }}\ncapture = {{ events = 1000, bytes = "8MiB" }}'
LUA_PACKAGE = "libnginx-mod-http-lua"


class Contestant:
    """A running proxy (or the application): its process, where it listens, and where it looks for the signature."""

    def __init__(self, process, port, path="/hook", signature_header="TinyTalk-Signature"):
        self.process = process
        self.port = port
        self.path = path
        self.signature_header = signature_header

    @property
    def name(self):
        return self.process.name


def write_from_template(template, path, **values):
    """Copies a file of `contestants/`, with each @name@ replaced by its value."""
    with open(os.path.join(TEMPLATES, template)) as source:
        text = re.sub(r"@(\w+)@", lambda found: str(values[found.group(1)]), source.read())
    with open(path, "w") as target:
        target.write(text)


def new_dir(parent, name):
    path = os.path.join(parent, name)
    os.mkdir(path)
    return path


def start_upstream(parent, body_bytes):
    # The cheapest answer that has read the body: lua would make the load's core the limit at 1 KiB.
    answer = "return 200;"
    if body_bytes > UPSTREAM_AT_ONCE_BYTES:
        answer = 'content_by_lua_block { ngx.req.read_body(); ngx.header["Content-Length"] = 0 }'
    return start_nginx(parent, "upstream", "upstream.conf", LOAD_CORE, answer=answer)


def start_haproxy(parent, upstream_port, bufsize_bytes):
    home = new_dir(parent, "haproxy")
    port = free_port()
    config = os.path.join(home, "haproxy.cfg")
    write_from_template(
        "haproxy.cfg",
        config,
        port=port,
        upstream_port=upstream_port,
        secret_base64=base64.b64encode(SECRET.encode()).decode(),
        bufsize=f"tune.bufsize {bufsize_bytes}" if bufsize_bytes else "",
    )
    command = [tool("haproxy", "haproxy"), "-db", "-f", config]
    return started("haproxy", command, home, port, PROXY_CORE)


def start_nginx_lua(parent, upstream_port):
    return start_nginx(parent, "nginx+lua", "nginx.conf", PROXY_CORE, upstream_port=upstream_port)


def start_hookward(
    parent, upstream_port, binary, template="hookward.toml", core=PROXY_CORE, name="hookward", captures=False
):
    home = new_dir(parent, name)
    port = free_port()
    with open(os.path.join(home, "secret"), "w") as secret:
        secret.write(SECRET)
    config = os.path.join(home, "hookward.toml")
    write_from_template(
        template,
        config,
        dir=home,
        port=port,
        admin_port=free_port(),
        upstream_port=upstream_port,
        admin=CAPTURING.format(home) if captures else "",
    )
    return started(name, [binary, "serve", "--config", config], home, port, core)


def start_qhook(parent, upstream_port, binary):
    home = new_dir(parent, "qhook")
    port = free_port()
    config = os.path.join(home, "qhook.yaml")
    write_from_template("qhook.yaml", config, dir=home, port=port, upstream_port=upstream_port, secret=SECRET)
    path, header = "/webhooks/bench", "X-Webhook-Signature"
    return started("qhook", [binary, "start", "--config", config], home, port, None, path, header)


def start_nginx(parent, name, template, core, **values):
    home = new_dir(parent, name)
    port = free_port()
    config = os.path.join(home, "nginx.conf")
    write_from_template(
        template,
        config,
        dir=home,
        modules=lua_modules(),
        # As root nginx would hand its worker to another user, who cannot enter our directory.
        user=f"user {getpass.getuser()};" if os.geteuid() == 0 else "",
        port=port,
        secret=SECRET,
        **values,
    )
    write_from_template("gate.lua", os.path.join(home, "gate.lua"))
    command = [tool("nginx", "nginx"), "-p", home, "-e", "stderr", "-c", config]
    return started(name, command, home, port, core)


def started(name, command, home, port, core, *at):
    process = Process(name, command, os.path.join(home, "log"), core)
    try:
        process.wait_for_port(port)
    except BaseException:
        process.stop()
        raise
    return Contestant(process, port, *at)


def lua_modules():
    """nginx's directory of loadable modules, with the lua module in it."""
    options = first_of([tool("nginx", "nginx"), "-V"], whole=True)
    found = re.search(r"--modules-path=(\S+)", options)
    directory = found.group(1) if found else "/usr/lib/nginx/modules"
    if not os.path.exists(os.path.join(directory, "ngx_http_lua_module.so")):
        raise Refusal(f"nginx's lua module not found: apt-get install {LUA_PACKAGE}")
    return directory


def first_of(command, whole=False):
    """What a program says of itself: its first line, or all of it."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.stdout if whole else done.stdout.strip().partition("\n")[0]
