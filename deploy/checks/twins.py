"""Broken twins: each is one of our sets with one thing wrong, and the check that has to say so."""

from render import containers, hookward, of_kind, pod, workload

SIDECAR, GATEWAY = "kubernetes/base/sidecar", "kubernetes/base/gateway"
QUEUE, REPLICATED = "kubernetes/overlays/sidecar-queue", "kubernetes/overlays/gateway-replicated"


def in_config(old, new):
    def change(documents):
        (config,) = of_kind(documents, "ConfigMap")
        text = config["data"]["hookward.yaml"]
        assert old in text, old
        config["data"]["hookward.yaml"] = text.replace(old, new)

    return change


def setting(find, **values):
    return lambda documents: find(documents).update(values)


def spec_of(kind):
    return lambda documents: of_kind(documents, kind)[0]["spec"]


def pod_spec(documents):
    return pod(documents)["spec"]


def app(documents):
    return containers(documents)[-1]


def without(find, key):
    return lambda documents: find(documents).pop(key)


# Check, set, what is done to it, what the complaint says.
TWINS = [
    ("schema", SIDECAR, setting(hookward, livenesProbe={}), "livenesProbe"),
    ("schema", GATEWAY, setting(lambda d: workload(d)["spec"], replicas="one"), "replicas"),
    ("schema", QUEUE, setting(lambda d: of_kind(d, "PersistentVolumeClaim")[0], apiVersion="v2"), "no schema"),
    ("links", SIDECAR, setting(spec_of("Service"), selector={"app": "other"}), "Service app: selects no pod"),
    ("links", SIDECAR, setting(spec_of("NetworkPolicy"), podSelector={"matchLabels": {"a": "b"}}), "NetworkPolicy app"),
    ("links", GATEWAY, setting(spec_of("PodDisruptionBudget"), selector={"matchLabels": {"a": "b"}}), "PodDisruption"),
    ("links", GATEWAY, setting(spec_of("StatefulSet"), serviceName="hookward"), "no headless Service"),
    ("links", GATEWAY, setting(hookward, livenessProbe={"tcpSocket": {"port": "admin"}}), "no port admin"),
    ("links", GATEWAY, lambda d: hookward(d)["ports"].pop(0), "no container has a port named webhooks"),
    ("links", GATEWAY, lambda d: pod_spec(d)["volumes"].pop(0), "volume config"),
    ("links", QUEUE, lambda d: d.remove(of_kind(d, "PersistentVolumeClaim")[0]), "no such PersistentVolumeClaim"),
    ("links", QUEUE, lambda d: d.remove(of_kind(d, "ConfigMap")[0]), "no such ConfigMap"),
    ("links", REPLICATED, setting(spec_of("PodMonitor"), podMetricsEndpoints=[{"port": "metrics"}]), "named metrics"),
    ("configuration", SIDECAR, in_config("upstream:", "upstreem:"), "upstreem"),
    ("configuration", SIDECAR, in_config("/run/secrets/hookward/", "/run/secrets/"), "cannot be read"),
    ("configuration", SIDECAR, in_config("127.0.0.1:3000", "127.0.0.1:3001"), "no container of this pod"),
    ("configuration", GATEWAY, in_config("0.0.0.0:8080", "0.0.0.0:8081"), "port webhooks is 8080"),
    ("configuration", GATEWAY, in_config("/var/lib/hookward/data", "/var/lib/data"), "is on no volume"),
    ("configuration", GATEWAY, in_config("1GiB", "2GiB"), "a quarter of the volume"),
    ("configuration", GATEWAY, in_config("shutdown_delay: 10s", "shutdown_delay: 0s"), "no shutdown_delay"),
    ("configuration", GATEWAY, in_config("shutdown_grace: 25s", "shutdown_grace: 5s"), "may outlive"),
    ("configuration", GATEWAY, setting(pod_spec, terminationGracePeriodSeconds=30), "below the 47.0 s"),
    ("configuration", SIDECAR, without(app, "lifecycle"), "no preStop"),
    ("configuration", SIDECAR, without(hookward, "restartPolicy"), "no native sidecar"),
    ("checkov", SIDECAR, setting(hookward, securityContext={"privileged": True}), "CKV_K8S_16"),
    ("checkov", GATEWAY, setting(hookward, image="hookward:latest"), "CKV_K8S_14"),
    ("checkov", GATEWAY, without(hookward, "readinessProbe"), "CKV_K8S_9"),
    ("checkov", GATEWAY, lambda d: hookward(d)["securityContext"].update(readOnlyRootFilesystem=False), "CKV_K8S_22"),
    ("checkov", GATEWAY, without(pod_spec, "automountServiceAccountToken"), "CKV_K8S_38"),
]

ENDPOINT = {
    "config__endpoints__crm__path": "/a",
    "config__endpoints__crm__upstream": "http://127.0.0.1:3000/a",
    "config__endpoints__crm__secrets[0]__file": "/run/secrets/hookward/tinytalk",
}

# Values the chart must refuse, and what it says.
REFUSED_VALUES = [
    ({"secretName": "other"}, "endpoints"),
    ({"config__endpoints__crm__path": "/a"}, "upstream"),
    ({"shape": "daemon"}, "shape"),
    ({"shape": "sidecar", **ENDPOINT}, "app"),
    ({"shape": "sidecar", "app__image": "app:1", "replicas": "2", **ENDPOINT}, "belongs to one pod"),
    ({"persistense__enabled": "false"}, "persistense"),
    ({"config__server__listen": "1"}, "listen"),
]
