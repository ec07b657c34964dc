"""Every set of manifests we ship, rendered as a user renders it."""

import os
import pathlib
import re
import subprocess
import tempfile

import yaml

DEPLOY = pathlib.Path(__file__).parent.parent
KUSTOMIZATIONS = sorted(path.parent for path in DEPLOY.glob("kubernetes/*/*/kustomization.yaml"))
CHART = DEPLOY / "helm" / "hookward"
VALUES = sorted(CHART.glob("ci/*-values.yaml"))


def run(*command):
    """The output of a command, or None and what it complained of."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    return (done.stdout if done.returncode == 0 else None), done.stderr + done.stdout


def rendered():
    """Name → documents, of every base, overlay and set of values."""
    sets = {}
    for folder in KUSTOMIZATIONS:
        if "components" in folder.parts:
            continue
        sets[str(folder.relative_to(DEPLOY))] = load(run(os.environ["KUBECTL"], "kustomize", folder))
    for values in VALUES:
        lint = run(os.environ["HELM"], "lint", "--strict", CHART, "-f", values)
        if lint[0] is None:
            raise SystemExit(f"helm lint with {values}: {lint[1]}")
        sets[f"helm/{values.stem}"] = load(template(values))
    (shown,) = re.findall("```yaml\n(.*?)```", (DEPLOY.parent / "README.md").read_text(), re.DOTALL)
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as values:
        values.write(shown)
        values.flush()
        sets["helm with the values in README.md"] = load(template(values.name))
    return sets


def template(*values, **settings):
    files = [word for file in values for word in ("-f", file)]
    given = [word for key, value in settings.items() for word in ("--set", f"{key.replace('__', '.')}={value}")]
    return run(os.environ["HELM"], "template", "hooks", CHART, *files, *given)


def load(outcome):
    text, complaint = outcome
    if text is None:
        raise SystemExit(complaint)
    return [document for document in yaml.safe_load_all(text) if document]


def of_kind(documents, *kinds):
    return [document for document in documents if document["kind"] in kinds]


def workload(documents):
    """The one Deployment or StatefulSet of a set."""
    (only,) = of_kind(documents, "Deployment", "StatefulSet")
    return only


def pod(documents):
    return workload(documents)["spec"]["template"]


def containers(documents):
    spec = pod(documents)["spec"]
    return spec.get("initContainers", []) + spec["containers"]


def hookward(documents):
    """hookward's container, alone or beside an application."""
    (only,) = (c for c in containers(documents) if c["name"] == "hookward")
    return only
