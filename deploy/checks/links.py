"""What names what: selectors, ports, volumes. Kubernetes accepts a name that leads nowhere."""

from render import containers, of_kind, pod, workload

# The Secrets are made apart; their keys are what README.md tells to put in.
SECRETS = {"app-hookward", "hookward"}


def complaints(documents):
    spec, labels = pod(documents)["spec"], pod(documents)["metadata"]["labels"]
    ports = {port["name"] for c in containers(documents) for port in c.get("ports", [])}
    yield from selectors(documents, labels)
    yield from port_names(documents, ports)
    yield from volumes(documents, spec)
    if workload(documents)["kind"] == "StatefulSet":
        name = workload(documents)["spec"]["serviceName"]
        headless = [s for s in of_kind(documents, "Service") if s["spec"].get("clusterIP") == "None"]
        if name not in [s["metadata"]["name"] for s in headless]:
            yield f"serviceName {name}: no headless Service of that name"


def selectors(documents, labels):
    for document in documents:
        selector = {
            "Service": lambda spec: spec["selector"],
            "NetworkPolicy": lambda spec: spec["podSelector"]["matchLabels"],
            "PodDisruptionBudget": lambda spec: spec["selector"]["matchLabels"],
            "PodMonitor": lambda spec: spec["selector"]["matchLabels"],
            "Deployment": lambda spec: spec["selector"]["matchLabels"],
            "StatefulSet": lambda spec: spec["selector"]["matchLabels"],
        }.get(document["kind"])
        if selector and not selector(document["spec"]).items() <= labels.items():
            yield f"{document['kind']} {document['metadata']['name']}: selects no pod of this set"
    for constraint in pod(documents)["spec"].get("topologySpreadConstraints", []):
        if not constraint["labelSelector"]["matchLabels"].items() <= labels.items():
            yield "topologySpreadConstraints: counts no pod of this set"


def port_names(documents, ports):
    named = []
    for service in of_kind(documents, "Service"):
        named += [port["targetPort"] for port in service["spec"]["ports"]]
    for policy in of_kind(documents, "NetworkPolicy"):
        rules = policy["spec"].get("ingress", [])
        named += [port["port"] for rule in rules for port in rule.get("ports", [])]
    for monitor in of_kind(documents, "PodMonitor"):
        named += [endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]]
        unknown = monitor["spec"].keys() - {"selector", "podMetricsEndpoints"}
        unknown |= {key for e in monitor["spec"]["podMetricsEndpoints"] for key in e} - {"port", "path", "interval"}
        for key in unknown:
            yield f"PodMonitor: {key} is a field this check does not know"
    for container in containers(documents):
        own = {port["name"] for port in container.get("ports", [])}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            for how in container.get(probe, {}).values():
                if isinstance(how, dict) and how["port"] not in own:
                    yield f"{container['name']}.{probe}: no port {how['port']}"
    for port in named:
        if port not in ports:
            yield f"no container has a port named {port}"


def volumes(documents, spec):
    names = {(d["kind"], d["metadata"]["name"]) for d in documents}
    claims = workload(documents)["spec"].get("volumeClaimTemplates", [])
    known = {volume["name"] for volume in spec["volumes"]} | {claim["metadata"]["name"] for claim in claims}
    for volume in spec["volumes"]:
        if "configMap" in volume and ("ConfigMap", volume["configMap"]["name"]) not in names:
            yield f"volume {volume['name']}: no such ConfigMap"
        if "secret" in volume and volume["secret"]["secretName"] not in SECRETS:
            yield f"volume {volume['name']}: README.md makes no such Secret"
        claim = volume.get("persistentVolumeClaim")
        if claim and ("PersistentVolumeClaim", claim["claimName"]) not in names:
            yield f"volume {volume['name']}: no such PersistentVolumeClaim"
    mounted = {mount["name"] for c in containers(documents) for mount in c.get("volumeMounts", [])}
    for name in sorted(mounted ^ known):
        yield f"volume {name}: mounted and not there, or there and not mounted"
