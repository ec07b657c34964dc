"""Rules, dashboard and /metrics, each as Prometheus sees them; and each check on a broken twin.

Closes with the number of checks that passed and failed; exit 1 when one failed.
"""

import json
import math
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import urllib.parse

import yaml

from score import Score
from traffic import Application, Hookward, get, wait_for

DEPLOY = pathlib.Path(__file__).parent.parent
RULES = yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text())
DASHBOARD = json.loads((DEPLOY / "grafana" / "hookward.json").read_text())
# Shown only where hookward itself terminates TLS.
NOT_SCRAPED = {"hookward_tls_certificate_expiry_timestamp_seconds"}

CONFIG = """
data_dir = "{place}/data"
[server]
listen = ["127.0.0.1:0"]
[admin]
listen = ["127.0.0.1:0"]
[endpoints.relay]
path = "/relay"
upstream = "{url}/ok"
secrets = [{{ name = "main", env = "SECRET", not_after = "2100-01-01T00:00:00Z" }}]
[endpoints.taken]
path = "/taken"
upstream = "{url}/ok"
mode = "queue"
secrets = [{{ name = "main", env = "SECRET" }}]
[endpoints.refused]
path = "/refused"
upstream = "{url}/400"
mode = "queue"
secrets = [{{ name = "main", env = "SECRET" }}]
[endpoints.waiting]
path = "/waiting"
upstream = "{url}/503"
mode = "queue"
secrets = [{{ name = "main", env = "SECRET" }}]
"""


def promtool(*words, given=None):
    done = subprocess.run(["promtool", *words], input=given, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_rules():
    """The unit tests, on the rules as they stand here: whole, or a twin of them."""
    with tempfile.TemporaryDirectory() as place:
        tests = DEPLOY / "prometheus" / "rules.test.yml"
        (pathlib.Path(place) / "rules.test.yml").write_text(tests.read_text())
        (pathlib.Path(place) / "rules.yml").write_text(yaml.safe_dump(RULES))
        return promtool("test", "rules", f"{place}/rules.test.yml")


def check_rules(score):
    code, said = test_rules()
    score.count(code == 0, f"rules.test.yml: {said}")
    for rule in RULES["groups"][0]["rules"]:
        for never_or_always in ("vector(0) > 1", "vector(1)"):
            sound, rule["expr"] = rule["expr"], never_or_always
            code, _ = test_rules()
            score.count(code != 0, f"rules.test.yml does not notice that {rule['alert']} is {never_or_always}")
            rule["expr"] = sound


def expressions():
    """Every query of rules and dashboard, the dashboard's variables filled in as Grafana does."""
    for rule in RULES["groups"][0]["rules"]:
        yield rule["alert"], rule["expr"]
    filled = {"$__rate_interval": "10s", "$job": "hookward", "$endpoint": "(relay|taken|refused|waiting)"}
    asked = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
    asked += [(mark["name"], mark["expr"]) for mark in DASHBOARD["annotations"]["list"]]
    for title, expression in asked:
        for variable, value in filled.items():
            expression = expression.replace(variable, value)
        yield f"panel {title}", expression
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            series = re.fullmatch(r"label_values\((.*), \w+\)", variable["definition"])[1]
            yield f"variable {variable['name']}", series.replace("$job", "hookward")


def values(prometheus, expression):
    answer = get(prometheus, f"/api/v1/query?query={urllib.parse.quote(expression)}")
    return [float(sample["value"][1]) for sample in json.loads(answer)["data"]["result"]]


def has_data(prometheus, expression):
    return any(not math.isnan(value) for value in values(prometheus, expression))


class Prometheus:
    """Prometheus itself, scraping one address every second."""

    def __init__(self, place, scraped):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(DEPLOY / "prometheus" / "rules.yml")],
            "scrape_configs": [{"job_name": "hookward", "static_configs": [{"targets": [scraped]}]}],
        }
        (pathlib.Path(place) / "prometheus.yml").write_text(yaml.safe_dump(config))
        command = ["prometheus", f"--config.file={place}/prometheus.yml", f"--storage.tsdb.path={place}/tsdb"]
        with open(f"{place}/prometheus.log", "w") as log:
            self.process = subprocess.Popen([*command, f"--web.listen-address={self.address}"], stderr=log)
        wait_for("Prometheus is ready", lambda: get(self.address, "/-/ready"))

    def end(self):
        self.process.terminate()
        self.process.wait()


def scrape(score):
    with tempfile.TemporaryDirectory() as place:
        application = Application()
        hookward = Hookward(place, CONFIG.format(place=place, url=application.url))
        prometheus = Prometheus(place, hookward.addresses["admin"])
        try:
            compare(score, hookward, prometheus.address)
        finally:
            prometheus.end()
            score.count(hookward.end() == 0, "hookward ends with 0")


def compare(score, hookward, prometheus):
    def traffic():
        for path in ("/relay", "/taken", "/refused", "/waiting"):
            hookward.send(path, "--repeat", "2")
        hookward.send("/relay", "--tamper")
        hookward.reload()

    traffic()
    code, said = promtool("check", "metrics", given=hookward.metrics())
    score.count(code == 0, f"promtool check metrics: {said}")
    code, _ = promtool("check", "metrics", given="hookward_things 1\n")
    score.count(code != 0, "promtool check metrics takes a metric without a help text")

    shown = set(re.findall(r"^# TYPE (\w+)", hookward.metrics(), re.MULTILINE)) | NOT_SCRAPED
    queries = list(expressions())
    for title, expression in queries:
        named = {re.sub("_(bucket|sum|count)$", "", name) for name in re.findall(r"(?:hookward|process)_\w+", expression)}
        score.count(named <= shown, f"{title} asks for {named - shown}, which hookward does not show")
    drawn = [(title, expression) for title, expression in queries if " " in title]
    silent = dict(drawn)

    def all_drawn():
        traffic()
        for title, expression in list(silent.items()):
            if has_data(prometheus, expression):
                del silent[title]
        return not silent

    try:
        wait_for("every query returns data", all_drawn)
    except SystemExit:
        pass
    for title, _ in drawn:
        score.count(title not in silent, f"{title} shows nothing: {silent.get(title)}")
    score.count(not has_data(prometheus, "sum(rate(hookward_request_total[10s]))"), "a query for nothing has data")
    rules = json.loads(get(prometheus, "/api/v1/rules"))["data"]["groups"][0]["rules"]
    score.count(len(rules) == len(RULES["groups"][0]["rules"]), "Prometheus loads every rule")
    for rule in rules:
        score.count(rule["health"] == "ok", f"{rule['name']}: {rule.get('lastError')}")


def main():
    score = Score("prometheus")
    check_rules(score)
    scrape(score)
    return score.close()


if __name__ == "__main__":
    sys.exit(main())
