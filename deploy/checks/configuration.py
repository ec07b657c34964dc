"""The configuration in each ConfigMap: by `hookward check`, and against the pod it runs in."""

import json
import os
import pathlib
import re
import subprocess
import tempfile

from render import containers, hookward, of_kind, pod, workload

# What hookward takes besides its two limits: the last commit, and closing the admin side.
LAST_SECONDS = 12


def effective(documents):
    """What is in effect, or None and the complaint. Mounted secrets are laid into a folder of our own."""
    (config,) = of_kind(documents, "ConfigMap")
    container = hookward(documents)
    mounts = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
    volumes = {v["name"]: v for v in pod(documents)["spec"]["volumes"]}
    (secrets,) = (path for name, path in mounts.items() if "secret" in volumes.get(name, {}))
    (folder,) = (path for name, path in mounts.items() if "configMap" in volumes.get(name, {}))
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    named = pathlib.PurePath(environment["HOOKWARD_CONFIG"])
    if str(named.parent) != folder or named.name not in config["data"]:
        return None, "HOOKWARD_CONFIG names no file of the mounted ConfigMap"
    with tempfile.TemporaryDirectory() as place:
        (pathlib.Path(place) / "tinytalk").write_text("a-secret-for-checking-only")
        file = pathlib.Path(place) / named.name
        file.write_text(config["data"][named.name].replace(f"{secrets}/", f"{place}/"))
        environment["HOOKWARD_CONFIG"] = str(file)
        command = [os.environ["HOOKWARD"], "check", "--json"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    # The ingress in front terminates TLS.
    said = [line for line in done.stderr.splitlines() if "speaks plain HTTP" not in line]
    if done.returncode or said:
        return None, "\n".join(said)
    return json.loads(done.stdout), None


def complaints(documents):
    config, complaint = effective(documents)
    if config is None:
        yield f"hookward check: {complaint}"
        return
    yield from ports(documents, config)
    yield from disk(documents, config)
    yield from ending(documents, config)


def ports(documents, config):
    declared = {port["name"]: port["containerPort"] for port in hookward(documents)["ports"]}
    listening = {"webhooks": config["server"]["listen"], "hookward-admin": config["admin"]["listen"]}
    for name, addresses in listening.items():
        if addresses != [f"0.0.0.0:{declared[name]}"]:
            yield f"port {name} is {declared[name]}, and hookward listens at {addresses}"
    for endpoint in config["endpoints"].values():
        local = re.match(r"http://127\.0\.0\.1:(\d+)/", endpoint["upstream"])
        own = [port["containerPort"] for c in containers(documents) for port in c.get("ports", [])]
        if local and int(local[1]) not in own:
            yield f"no container of this pod has the port of {endpoint['upstream']}"


def disk(documents, config):
    data_dir = config.get("data_dir")
    claims = [c["spec"] for c in workload(documents)["spec"].get("volumeClaimTemplates", [])]
    claims += [c["spec"] for c in of_kind(documents, "PersistentVolumeClaim")]
    if bool(data_dir) != bool(claims):
        yield "a volume without data_dir, or data_dir without a volume"
    if data_dir and not any(data_dir.startswith(f"{m['mountPath']}/") for m in hookward(documents)["volumeMounts"]):
        yield f"data_dir {data_dir} is on no volume"
    for claim in claims:
        size = in_bytes(claim["resources"]["requests"]["storage"])
        stored = sum(in_bytes(e["queue"]["max_stored_bytes"]) for e in config["endpoints"].values())
        if stored * 4 > size * 3:
            yield "the endpoints' max_stored_bytes leave less than a quarter of the volume"


def ending(documents, config):
    """SIGTERM to exit: what is asked for must fit into what the kubelet gives."""
    spec = pod(documents)["spec"]
    delay, grace = seconds(config["shutdown_delay"]), seconds(config["shutdown_grace"])
    waits = [c["lifecycle"]["preStop"]["sleep"]["seconds"] for c in spec["containers"] if "lifecycle" in c]
    is_sidecar = "initContainers" in spec
    if is_sidecar and hookward(documents).get("restartPolicy") != "Always":
        yield "hookward ends before the application: it is no native sidecar"
    if is_sidecar and max(waits, default=0) < 5:
        yield "the application hears SIGTERM while endpoint lists still name the pod: no preStop"
    if not is_sidecar and delay < 5:
        yield "hookward stops accepting while endpoint lists still name the pod: no shutdown_delay"
    needed = max(waits, default=0) + delay + grace + LAST_SECONDS
    if needed > spec["terminationGracePeriodSeconds"]:
        yield f"terminationGracePeriodSeconds is below the {needed} s that ending may take"
    for name, endpoint in config["endpoints"].items():
        longest = endpoint["deadline"] if endpoint["mode"] == "relay" else endpoint["queue"]["attempt_timeout"]
        if not is_sidecar and seconds(longest) > delay + grace:
            yield f"endpoints.{name}: what is in flight may outlive shutdown_grace"


def seconds(text):
    """`25s` and `1m 5s` in seconds."""
    units = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "day": 86400, "days": 86400}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"([\d.]+)([a-z]+)", text))


def in_bytes(value):
    """`2Gi`, `512MiB`, `512.0 MiB` or a number, in bytes."""
    if isinstance(value, int):
        return value
    number, unit = re.fullmatch(r"([\d.]+) ?([KMGT]?)i?B?", value).groups()
    return float(number) * 1024 ** " KMGT".index(unit or " ")
