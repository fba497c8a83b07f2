"""serving/kubernetes: manifests that fit Kubernetes' schemas and the container's needs. No cluster is used."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from common.paths import ROOT
from serving.gateway.settings import parse_settings
from serving.monitoring.prometheus_rule import prometheus_rule

KUBERNETES = ROOT / "serving" / "kubernetes"
CONTAINER = ROOT / "serving" / "container"
NAME = {"app.kubernetes.io/name": "clipsieve"}
FILES = sorted(
    path for path in KUBERNETES.rglob("*.yaml") if path.name not in ("kustomization.yaml", "adapter_rules.yaml")
)
OPERATORS = ("monitoring.coreos.com", "serving.kserve.io")
"""Whose schemas are not in the package; what the tests below hold is all that is checked of theirs."""


def read(path: str | Path) -> dict[str, Any]:
    return yaml.safe_load((KUBERNETES / path).read_text())


POD = read("base/deployment.yaml")["spec"]["template"]["spec"]
(TRITON,) = POD["containers"]
RUNTIME = read("kserve/serving_runtime.yaml")["spec"]
(KSERVE,) = RUNTIME["containers"]
CONTAINERS = [pytest.param(TRITON, id="deployment"), pytest.param(KSERVE, id="kserve")]


def seconds_of_exit() -> int:
    """The time that Triton waits for requests in flight when it stops."""
    (seconds,) = re.findall(r"--exit-timeout-secs=(\d+)", (CONTAINER / "start.sh").read_text())
    return int(seconds)


# ---- schemas ----


@pytest.mark.parametrize("version", ["1.28", "1.37"])
@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(KUBERNETES)))
def test_manifests_fit_the_schemas_of_kubernetes(path, version):
    manifest = yaml.safe_load(path.read_text())
    if not manifest["apiVersion"].startswith(OPERATORS):
        kubernetes_validate.validate(manifest, version, strict=True)


def test_the_schemas_are_strict():
    broken = read("base/deployment.yaml") | {"spec": {"replica": 2}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, "1.37", strict=True)


def test_the_container_of_kserve_is_a_pods_container():
    """ServingRuntime takes a pod's containers and volumes as they are."""
    pod = {"containers": RUNTIME["containers"], "volumes": RUNTIME["volumes"]}
    manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": pod}
    kubernetes_validate.validate(manifest, "1.37", strict=True)


@pytest.mark.parametrize("folder", ["base", "gpu", "gateway", "monitoring", "kserve"])
def test_every_file_is_in_its_kustomization(folder):
    kustomization = read(f"{folder}/kustomization.yaml")
    listed = set(kustomization["resources"]) - {"../base"}
    there = {path.name for path in (KUBERNETES / folder).glob("*.yaml")}
    assert listed == there - {"kustomization.yaml", "adapter_rules.yaml"}


@pytest.mark.parametrize("folder", ["base", "gpu", "gateway", "monitoring", "kserve"])
def test_kustomize_builds_what_fits_the_schemas(folder):
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("no kubectl on PATH; it carries kustomize")
    done = subprocess.run([kubectl, "kustomize", KUBERNETES / folder], capture_output=True, text=True, check=True)
    assert done.stderr == ""  # where it says what is deprecated
    for manifest in yaml.safe_load_all(done.stdout):
        if not manifest["apiVersion"].startswith(OPERATORS):
            kubernetes_validate.validate(manifest, "1.37", strict=True)
        if manifest["kind"] == "NetworkPolicy":
            assert manifest["spec"] == read("base/network.yaml")["spec"]
        if manifest["kind"] == "Deployment" and folder == "gpu":
            assert manifest["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


# ---- the pod ----


@pytest.mark.parametrize("container", CONTAINERS)
def test_the_server_is_shut_in(container):
    security = container["securityContext"]
    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    of_pod = security if "runAsUser" in security else POD["securityContext"]
    assert (of_pod["runAsNonRoot"], of_pod["runAsUser"]) == (True, 1000)
    assert of_pod["seccompProfile"] == {"type": "RuntimeDefault"}


def test_nothing_of_the_host_and_no_token_is_in_the_pod():
    assert not POD.keys() & {"hostNetwork", "hostPID", "hostIPC"}
    assert all("hostPath" not in volume for volume in POD["volumes"])
    assert POD["automountServiceAccountToken"] is False
    assert read("base/serviceaccount.yaml")["automountServiceAccountToken"] is False


def test_the_models_are_read_only():
    (mount,) = (mount for mount in TRITON["volumeMounts"] if mount["name"] == "models")
    (volume,) = (volume for volume in POD["volumes"] if volume["name"] == "models")
    assert mount["readOnly"] is True
    assert volume["persistentVolumeClaim"] == {
        "claimName": read("base/models.yaml")["metadata"]["name"],
        "readOnly": True,
    }


@pytest.mark.parametrize("container", CONTAINERS)
def test_shared_memory_and_tmp_can_be_written(container):
    """The container can write to /tmp, where start.sh makes an empty folder to start in."""
    volumes = {volume["name"]: volume for volume in [*POD["volumes"], *RUNTIME["volumes"]]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"
    assert "emptyDir" in mounts["/tmp"]


TIMEOUTS = ("TIMEOUT_S", "PROOF_TIMEOUT_S")


@pytest.mark.parametrize("container", CONTAINERS)
def test_probes_are_real_inferences_with_time_for_all(container):
    text = (CONTAINER / "health.py").read_text()
    limit, proof_limit = (float(re.findall(rf"^{name} = ([\d.]+)", text, re.MULTILINE)[0]) for name in TIMEOUTS)
    probes = [probe for name, probe in container.items() if name.endswith("Probe")]
    assert len(probes) >= 2
    for probe in probes:
        assert probe["exec"]["command"] == ["python3", "/opt/clipsieve/serving/container/health.py"]
        assert probe["timeoutSeconds"] > limit + max(2 * limit, proof_limit)  # to get the proof, and then either


def test_the_gateway_is_shut_in_reaches_the_server_and_wants_tokens():
    template = read("gateway/deployment.yaml")["spec"]["template"]
    pod, (container,) = template["spec"], template["spec"]["containers"]
    assert container["securityContext"] == TRITON["securityContext"]
    assert (pod["securityContext"]["runAsNonRoot"], pod["automountServiceAccountToken"]) == (True, False)
    (entrance, *_) = read("base/network.yaml")["spec"]["ingress"]
    assert entrance["from"][0]["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    settings = parse_settings([], "", {each["name"]: each["value"] for each in container["env"]})
    assert settings.url == f"http://{read('base/service.yaml')['metadata']['name']}:8000"
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert (ports["rest"], ports["metrics"]) == (settings.port, settings.metrics_port)
    assert settings.tokens
    assert str(settings.tokens.parent) == container["volumeMounts"][0]["mountPath"]


def test_large_models_have_ten_minutes_to_load():
    probe = TRITON["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 600
    assert KSERVE["livenessProbe"]["initialDelaySeconds"] >= 600


@pytest.mark.parametrize(
    ("container", "grace"),
    [
        (TRITON, POD["terminationGracePeriodSeconds"]),
        (KSERVE, read("kserve/inference_service.yaml")["spec"]["predictor"]["terminationGracePeriodSeconds"]),
    ],
    ids=["deployment", "kserve"],
)
def test_there_is_time_to_leave_the_endpoints_and_to_answer_what_is_in_flight(container, grace):
    _, pause = container["lifecycle"]["preStop"]["exec"]["command"]
    assert grace > int(pause) + seconds_of_exit()


@pytest.mark.parametrize("container", CONTAINERS)
def test_the_command_is_that_of_compose(container):
    compose = yaml.safe_load((CONTAINER / "compose.yaml").read_text())
    assert container["command"] == compose["services"]["triton"]["command"]
    assert container["image"].split(":")[0] == compose["services"]["triton"]["image"]


def test_one_tag_of_the_image():
    (image,) = read("base/kustomization.yaml")["images"]
    assert f"{image['name']}:{image['newTag']}" == KSERVE["image"]


# ---- around it ----


def test_selectors_find_the_pods():
    deployment = read("base/deployment.yaml")["spec"]
    assert deployment["template"]["metadata"]["labels"] == NAME
    assert deployment["selector"] == {"matchLabels": NAME}
    assert read("base/service.yaml")["spec"]["selector"] == NAME
    assert read("base/disruption.yaml")["spec"]["selector"] == {"matchLabels": NAME}
    assert read("base/network.yaml")["spec"]["podSelector"] == {"matchLabels": NAME}
    assert read("monitoring/service_monitor.yaml")["spec"]["selector"] == {"matchLabels": NAME}


def test_ports_have_one_name_everywhere():
    ports = {port["name"]: port["containerPort"] for port in TRITON["ports"]}
    assert ports == {"http": 8000, "grpc": 8001, "metrics": 8002}
    assert {port["name"]: port["port"] for port in read("base/service.yaml")["spec"]["ports"]} == ports
    allowed = [port["port"] for rule in read("base/network.yaml")["spec"]["ingress"] for port in rule["ports"]]
    assert sorted(allowed) == sorted(ports)
    (endpoint,) = read("monitoring/service_monitor.yaml")["spec"]["endpoints"]
    assert endpoint["port"] == "metrics"


def test_only_named_clients_and_prometheus_come_in_and_nothing_goes_out():
    network = read("base/network.yaml")["spec"]
    assert network["egress"] == []
    assert set(network["policyTypes"]) == {"Ingress", "Egress"}
    assert all(rule["from"] for rule in network["ingress"])


def test_the_rules_are_those_of_alerts_yml():
    text = (KUBERNETES / "monitoring" / "prometheus_rule.yaml").read_text()
    command = "python -m serving.monitoring.prometheus_rule > serving/kubernetes/monitoring/prometheus_rule.yaml"
    assert text == prometheus_rule(), f"run: {command}"
    alerts = yaml.safe_load((ROOT / "serving" / "monitoring" / "alerts.yml").read_text())
    assert yaml.safe_load(text)["spec"] == alerts


def test_prometheus_finds_the_job_that_the_alerts_name():
    """job="clipsieve" comes from the Service's label of the ServiceMonitor's jobLabel."""
    assert read("monitoring/service_monitor.yaml")["spec"]["jobLabel"] in NAME
    assert 'up{job="clipsieve"}' in (ROOT / "serving" / "monitoring" / "alerts.yml").read_text()


def test_the_autoscalers_metric_is_the_adapters():
    (rule,) = read("monitoring/adapter_rules.yaml")["rules"]
    scaler = read("monitoring/autoscaler.yaml")["spec"]
    assert scaler["metrics"][0]["pods"]["metric"]["name"] == rule["name"]["as"]
    assert scaler["scaleTargetRef"]["name"] == read("base/deployment.yaml")["metadata"]["name"]
    assert scaler["minReplicas"] == read("base/deployment.yaml")["spec"]["replicas"]


def test_kserve_serves_the_same_volume_with_the_runtime():
    model = read("kserve/inference_service.yaml")["spec"]["predictor"]["model"]
    assert model["runtime"] == read("kserve/serving_runtime.yaml")["metadata"]["name"]
    assert model["modelFormat"]["name"] in {model_format["name"] for model_format in RUNTIME["supportedModelFormats"]}
    assert model["protocolVersion"] in RUNTIME["protocolVersions"]
    (mount,) = (mount for mount in TRITON["volumeMounts"] if mount["name"] == "models")
    assert model["storageUri"] == f"pvc://{read('base/models.yaml')['metadata']['name']}/{mount['subPath']}"
