"""Renders every set of manifests and checks it; then checks that each check sees what is broken.

Closes with the number of checks that passed and failed; exit 1 when one failed.
"""

import copy
import json
import pathlib
import subprocess
import sys
import tempfile
import tomllib

import kubernetes_validate
import yaml

import configuration
import links
import render
import twins
from score import Score

# The oldest that has all we use, one in the middle, and the newest.
VERSIONS = ("1.30", "1.34", "1.37")
# Checkov's rules that do not fit, and why.
SKIPPED = {
    "CKV_K8S_11": "a limit on CPU only makes answers late; threads bounds it",
    "CKV_K8S_15": "a pod has to start while the registry is down",
    "CKV_K8S_21": "the namespace is chosen when it is applied",
    "CKV_K8S_43": "the digest is that of the user's own registry",
}


def schema(documents):
    """By the API's own schemas; those of PodMonitor, which is not Kubernetes', are in `links`."""
    for version in VERSIONS:
        for document in documents:
            if document["kind"] == "PodMonitor":
                continue
            try:
                kubernetes_validate.validate(document, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                yield f"{version}: {document['kind']}: {error} {list(error.path)}"
            except kubernetes_validate.SchemaNotFoundError:
                yield f"{version}: {document['kind']}: no schema for {document['apiVersion']}"


def checkov(sets):
    """Name → the rules that a set breaks; all sets in one run, because starting it is slow."""
    with tempfile.TemporaryDirectory() as place:
        files = {}
        for number, (name, documents) in enumerate(sets):
            files[f"/{number}.yaml"] = name
            (pathlib.Path(place) / f"{number}.yaml").write_text(yaml.safe_dump_all(documents))
        command = ["checkov", "--skip-download", "--framework", "kubernetes", "-d", place, "-o", "json"]
        done = subprocess.run([*command, "--skip-check", ",".join(SKIPPED)], capture_output=True, text=True)
    report = json.loads(done.stdout)
    if report["summary"]["parsing_errors"] or not report["summary"]["passed"]:
        raise SystemExit(f"checkov could not read everything: {done.stderr}")
    broken = {name: [] for name, _ in sets}
    for failed in report["results"]["failed_checks"]:
        broken[files[failed["file_path"]]].append(f"{failed['check_id']} {failed['check_name']} {failed['resource']}")
    return broken


CHECKS = {"schema": schema, "links": links.complaints, "configuration": configuration.complaints}


def main():
    score, sets = Score("deploy"), render.rendered()
    version = tomllib.loads((render.DEPLOY.parent / "Cargo.toml").read_text())["package"]["version"]
    for name, documents in sets.items():
        image = render.hookward(documents)["image"]
        score.count(image.endswith(f"hookward:{version}"), f"{name} runs {image}, which is not {version}")
        for check, complaints in CHECKS.items():
            found = list(complaints(documents))
            score.count(not found, f"{check} of {name}", found)
    scanned = list(sets.items())
    for check, name, change, expected in twins.TWINS:
        twin = copy.deepcopy(sets[name])
        change(twin)
        if check == "checkov":
            scanned.append((f"a twin of {name} with {expected}", twin))
        else:
            found = list(CHECKS[check](twin))
            if check == "schema":
                seen = all(any(f.startswith(version) and expected in f for f in found) for version in VERSIONS)
            else:
                seen = any(expected in complaint for complaint in found)
            score.count(seen, f"{check} sees no {expected!r} in a twin of {name}", found)
    for name, broken in checkov(scanned).items():
        if name in sets:
            score.count(not broken, f"checkov of {name}", broken)
        else:
            rule = name.split()[-1]
            score.count(any(line.startswith(rule) for line in broken), f"checkov sees nothing in {name}", broken)
    for settings, expected in twins.REFUSED_VALUES:
        text, complaint = render.template(**settings)
        score.count(text is None and expected in complaint, f"the chart takes {settings}", [complaint])
    return score.close()


if __name__ == "__main__":
    sys.exit(main())
