"""serving/monitoring: alerts that fire, and a dashboard and rules that name only what the server really exports."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from artefacts import write_head
from chromium import browser
from pictures import jpeg
from PIL import Image
from programs import program_or_skip
from promql_parser import VectorSelector, parse, walk
from waiting import until

from build.head import build_head
from build.repository import install
from clipsieve import Client
from common.manifest import EncoderManifest, ScoreDistribution, write_manifest
from common.paths import ROOT, head_folder
from common.score_edges import PROBABILITY_EDGES
from common.triton_messages import ENSEMBLES, QUEUE_REFUSALS
from recipes.errors import run_step
from recipes.schema import load_recipe, parse_recipe
from serving.container import health
from serving.embedded import EmbeddedServer, ServerSettings
from serving.monitoring import local
from serving.monitoring.dashboard import dashboard
from serving.monitoring.local import local_config, watched
from serving.monitoring.preview import layout, page
from serving.monitoring.queries import Window, variables_of
from serving.triton_wheel import ServingError

MONITORING = ROOT / "serving" / "monitoring"
ALERTS = yaml.safe_load((MONITORING / "alerts.yml").read_text())
CASES = yaml.safe_load((MONITORING / "alerts_test.yml").read_text())
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
TEXT = (MONITORING / "grafana" / "dashboards" / "clipsieve.json").read_text()
DASHBOARD = json.loads(TEXT)
TARGETS = [target for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
QUANTILES = "--metrics-config=summary_latencies=true"

NOT_EXPORTED_HERE = {
    "nv_gpu_utilization": "machines with a GPU only",
    "nv_gpu_memory_used_bytes": "machines with a GPU only",
    "nv_gpu_memory_total_bytes": "machines with a GPU only",
    "up": "made by Prometheus itself",
    "probe_success": "made by the blackbox exporter",
}


EDGES = PROBABILITY_EDGES
EVENLY = [(index + 1) / (len(EDGES) + 1) for index in range(len(EDGES))]


@pytest.fixture(scope="module")
def watching(encoder: EncoderManifest, tmp_path_factory) -> Iterator[EmbeddedServer]:
    """The real server with all metrics that need no GPU: a head with a training distribution, and its shadow."""
    folder: Path = tmp_path_factory.mktemp("watching")
    heads: list[dict[str, Any]] = [
        {"name": name, "class_names": ["plain", "round"], "source": str(folder / name)}
        for name in ("live", "candidate")
    ]
    heads[0]["shadow"] = "candidate"
    data = load_recipe("demo").model_dump(include={"name", "description", "encoder"})
    recipe = parse_recipe(data | {"heads": heads, "serving": {"watch": True}})
    for seed, head in enumerate(recipe.heads):
        source = head_folder(recipe, head)
        manifest = write_head(source, encoder, head.class_names, name=head.name, seed=seed)
        distribution = ScoreDistribution(images=1000, edges=EDGES, ratios=[EVENLY])
        write_manifest(manifest.model_copy(update={"score_distribution": distribution}), source / "head.json")
        build_head(source, recipe.build.opset)
    install(recipe, folder / "models")
    log = folder / "tritonserver.log"
    models = folder / "models"
    with EmbeddedServer(models, ServerSettings.on_free_ports(log, options=[QUANTILES])) as server:
        yield server


def names_in(expression: str) -> set[str]:
    """Names of the metrics that a PromQL expression reads, with Grafana's variables filled in."""
    filled = expression.replace("$__rate_interval", "1m").replace("$", "")
    names: set[str] = set()

    def visit(node: object) -> bool:
        if isinstance(node, VectorSelector):
            names.add(node.name or "")
        return True

    walk(parse(filled), visit)
    return names


def exported(server) -> set[str]:
    """Names on the server's /metrics."""
    with urllib.request.urlopen(server.metrics_url, timeout=10) as response:
        lines = response.read().decode().splitlines()
    return {re.split(r"[{ ]", line)[0] for line in lines if line and not line.startswith("#")}


# ---- rules ----


def test_promtool_takes_the_rules_and_the_configuration():
    promtool = program_or_skip("promtool")
    subprocess.run([promtool, "check", "rules", MONITORING / "alerts.yml"], check=True, capture_output=True)
    subprocess.run([promtool, "check", "config", MONITORING / "prometheus.yml"], check=True, capture_output=True)


def test_every_alert_fires_when_it_should():
    promtool = program_or_skip("promtool")
    command = [promtool, "test", "rules", MONITORING / "alerts_test.yml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_case_in_which_it_fires():
    fired = {
        case["alertname"] for test in CASES["tests"] for case in test.get("alert_rule_test", []) if "exp_alerts" in case
    }
    assert fired == {rule["alert"] for rule in RULES if "alert" in rule}


def test_alerts_say_what_is_wrong_and_what_to_do():
    for rule in RULES:
        if "alert" in rule:
            assert rule["alert"].startswith("Clipsieve")
            assert rule["for"]
            assert rule["labels"]["severity"] in {"critical", "warning", "info"}
            assert set(rule["annotations"]) == {"summary", "description"}


def test_the_blackbox_exporter_takes_its_configuration():
    program = program_or_skip("prometheus-blackbox-exporter")
    command = [program, f"--config.file={MONITORING / 'blackbox.yml'}", "--config.check"]
    subprocess.run(command, check=True, capture_output=True)


def test_the_blackbox_exporter_asks_and_judges_as_the_health_check_does():
    http = yaml.safe_load((MONITORING / "blackbox.yml").read_text())["modules"]["inference"]["http"]
    body = json.loads(http["body"])
    picture = base64.b64decode(body["inputs"][0]["data"][0])
    assert body == {**health.REQUEST, "inputs": [health.images([picture])]}
    with Image.open(io.BytesIO(picture)) as image:
        image.load()
        assert image.size == (8, 8)
    (pattern,) = http["fail_if_body_not_matches_regexp"]
    assert pattern == "|".join(['(?i)"outputs"', *QUEUE_REFUSALS])


def test_the_blackbox_exporter_asks_each_ensemble():
    scraped = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["scrape_configs"]
    (health,) = (job for job in scraped if job["job_name"] == "clipsieve_health")
    targets = health["static_configs"][0]["targets"]
    assert [target.split("/")[5] for target in targets] == list(ENSEMBLES)


# ---- names ----


def test_every_metric_of_the_dashboard_and_the_alerts_is_exported(watching):
    with Client(watching.grpc_url) as client:
        client.score([jpeg(), b"not an image"])
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    needed = {name for query in [*TARGETS, *RULES] for name in names_in(query["expr"])} - recorded
    needed -= set(NOT_EXPORTED_HERE)
    until(lambda: needed <= exported(watching), f"every one of {needed}")  # counters of our own follow in a second


def test_what_is_said_not_to_be_exported_is_asked_for():
    """An unused exception in the list above fails, so that the list does not grow stale."""
    assert {name for query in [*TARGETS, *RULES] for name in names_in(query["expr"])} >= set(NOT_EXPORTED_HERE)


def test_every_recording_is_used():
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    assert recorded <= {name for query in [*TARGETS, *RULES] for name in names_in(query["expr"])}


def failed(server) -> float:
    """Ensemble requests that failed, as the server counts them."""
    with urllib.request.urlopen(server.metrics_url, timeout=10) as response:
        lines = response.read().decode().splitlines()
    counted = 'nv_inference_request_failure{model="image_score",reason="OTHER"'
    return sum(float(line.split()[-1]) for line in lines if line.startswith(counted))


def test_a_failed_request_of_an_ensemble_counts_twice(watching):
    """Triton counts such a failure twice, so clipsieve:request_failures:rate5m halves it; both change together."""
    before = failed(watching)
    with Client(watching.grpc_url) as client:
        client.score([b"not an image"])
    until(lambda: failed(watching) - before >= 2)
    assert failed(watching) - before == 2


# ---- the dashboard ----


def test_the_dashboard_is_what_its_source_prints():
    command = "python -m serving.monitoring.dashboard > serving/monitoring/grafana/dashboards/clipsieve.json"
    assert dashboard() == DASHBOARD, f"run: {command}"


def test_grafana_knows_every_key_of_the_dashboard():
    """Grafana's own types drop fields that they do not have, so reading and writing the file must keep all of it."""
    pytest.importorskip("grafana_foundation_sdk", reason="Grafana's types are for Python 3.11 and later")
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

    register_default_plugins()
    again = json.loads(JSONEncoder().encode(Dashboard.from_json(json.loads(TEXT))))
    assert lost(DASHBOARD, again) == []


def lost(ours, theirs, path: str = "") -> list[str]:
    if isinstance(ours, dict):
        missing = [f"{path}/{key}" for key in ours if key not in theirs]
        return missing + [one for key in ours if key in theirs for one in lost(ours[key], theirs[key], f"{path}/{key}")]
    if isinstance(ours, list):
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [one for index, (mine, other) in pairs for one in lost(mine, other, f"{path}/{index}")]
    return [] if ours == theirs else [path]


def test_panels_do_not_overlap_and_have_ids_of_their_own():
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(numbers)) == len(numbers)


def test_grafana_finds_the_datasource_and_the_dashboard():
    provisioning = MONITORING / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "clipsieve.yaml").read_text())["providers"]
    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    assert provider["options"]["path"] == "/etc/grafana/dashboards"


# ---- against a real Prometheus ----


@pytest.fixture(scope="module")
def prometheus(watching, tmp_path_factory):
    """A real Prometheus that has scraped the real server, every second, while images were scored."""
    program_or_skip("prometheus")
    program_or_skip("prometheus-blackbox-exporter")
    folder = tmp_path_factory.mktemp("prometheus")
    with watched(watching.http_port, watching.metrics_port, folder, interval_s=1) as running:
        with Client(watching.grpc_url) as client:
            score = partial(client.score, [jpeg(seed=seed) for seed in range(4)] + [b"not an image"])
            until(lambda: score() and scrapes(running) >= 4, pause_s=0.5)  # it looks for its targets after five seconds
        yield running


def scrapes(prometheus) -> int:
    answers = prometheus.get("query", query='count_over_time(up{job="clipsieve"}[1m])')["result"]
    return int(answers[0]["value"][1]) if answers else 0


def test_a_real_prometheus_answers_every_panel(prometheus):
    """Prometheus refuses no query, and only those without metrics on this machine, or without failures, are empty."""
    variables = variables_of(DASHBOARD, prometheus)
    assert {name: len(values) for name, values in variables.items()} == {"instance": 1, "head": 1, "label": 1}

    def empty() -> list[str]:
        window, titles = Window(time.time(), 30, step_s=1, rate_interval_s=5), []
        for panel, seen in layout(DASHBOARD, variables):
            series = [one for target in panel.get("targets", []) for one in prometheus.series(target, seen, window)]
            names = {name for target in panel.get("targets", []) for name in names_in(target["expr"])}
            if not series and not names & set(NOT_EXPORTED_HERE) and panel["type"] != "row":
                titles.append(panel["title"])
        return titles

    until(lambda: empty() == ["Requests failed in a model"])  # none did


def test_deep_health_is_a_metric(prometheus):
    def health_of_ensembles() -> list[str]:
        answers = prometheus.get("query", query='probe_success{job="clipsieve_health"}')["result"]
        return [answer["value"][1] for answer in answers]

    until(lambda: health_of_ensembles() == ["1", "1"])


def test_no_rule_fails_and_none_fires_on_a_server_that_does_well(prometheus):
    rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert len(rules) == len(RULES)
    assert [(rule["name"], rule["lastError"]) for rule in rules if rule["health"] == "err"] == []
    assert [rule["name"] for rule in rules if rule.get("state") == "firing"] == []


def test_the_preview_is_one_file_that_a_browser_shows(prometheus, tmp_path):
    html = page(DASHBOARD, prometheus, Window(time.time(), 30, step_s=1, rate_interval_s=5))
    (tmp_path / "page.html").write_text(html)
    titles = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    with browser(tmp_path / "profile") as chromium:
        shown = chromium.open((tmp_path / "page.html").as_uri(), width=1600)
        assert shown.run("[...document.querySelectorAll('h3')].map(node => node.textContent)") == titles
        assert shown.run(
            "[...document.querySelectorAll('svg')].every(node => node.getBoundingClientRect().width > 100)"
        )
        assert shown.complaints() == []
        assert len(shown.requests()) == 1


def test_the_local_configuration_names_this_machine_alone():
    config = yaml.safe_load(local_config(1, 2, 3))
    places = re.findall(r"[\w.]+:\d+", json.dumps(config["scrape_configs"]))
    assert set(places) == {"127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"}
    assert Path(config["rule_files"][0]).name == "alerts.yml"


# ---- errors ----


def test_programs_that_are_not_installed_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run_step("serving.monitoring.local", lambda: local.main(["--folder", str(tmp_path)])) == 1
    assert "prometheus and prometheus-blackbox-exporter not found on PATH; install them" in capsys.readouterr().err


def test_a_prometheus_that_does_not_start_shows_its_log(tmp_path):
    log = tmp_path / "prometheus.log"
    log.write_text("no such flag")
    process = subprocess.Popen(["false"])
    with pytest.raises(ServingError, match="no such flag"):
        local.wait_until_ready(process, "http://127.0.0.1:9/-/ready", log)
    process.wait()
