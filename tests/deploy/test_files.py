"""What `deploy/` promises: the files parse, name what exists, and grant no more than they need."""

from __future__ import annotations

import configparser
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.metrics import Metrics
from tests.harness.sbom import SBOM, written

DEPLOY = Path(__file__).parents[2] / "deploy"


def exported() -> set[str]:
    """Every series name that a gateway exports."""
    names = set()
    for family in Metrics().registry.collect():
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
        names |= {family.name + suffix for suffix in suffixes}
    return names


def named(expressions: list[str]) -> set[str]:
    return {name for expression in expressions for name in re.findall(r"seqroute_\w+", expression)}


def test_alert_rules_name_metrics_that_exist_and_say_what_to_do() -> None:
    (group,) = yaml.safe_load((DEPLOY / "prometheus/alerts.yaml").read_text())["groups"]
    assert len(group["rules"]) >= 6
    assert named([rule["expr"] for rule in group["rules"]]) <= exported()
    for rule in group["rules"]:
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"].keys() == {"summary", "action"}


def test_the_grafana_dashboard_names_metrics_that_exist_and_overlaps_nowhere() -> None:
    panels = json.loads((DEPLOY / "grafana/seqroute.json").read_text())["panels"]
    assert named([target["expr"] for panel in panels for target in panel["targets"]]) <= exported()
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(places)


def test_wheel_and_images_carry_a_bill_of_the_packages_that_serve() -> None:
    assert SBOM.read_text() == written(), "run make lock"
    pins = set(re.findall(r"^(\S+==\S+)", (SBOM.parents[1] / "requirements/serve.lock").read_text(), re.MULTILINE))
    bill = json.loads(SBOM.read_text())
    assert {f"{part['name']}=={part['version']}" for part in bill["components"]} == pins
    packaged = tomllib.loads((SBOM.parents[1] / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert SBOM.name in packaged["gateway"]


def test_compose_serves_after_the_migration_and_takes_secrets_from_the_environment() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    services = yaml.safe_load(text)["services"]
    assert set(services) == {"postgres", "migrate", "gateway-1", "gateway-2", "nightly"}
    for name in ("gateway-1", "gateway-2", "nightly"):
        assert services[name]["depends_on"] == {"migrate": {"condition": "service_completed_successfully"}}
        assert services[name]["read_only"] is True
        assert services[name]["cap_drop"] == ["ALL"]
    assert re.search(r"sk-[A-Za-z0-9]{8}", text) is None


def test_the_images_run_as_a_user_without_rights_and_install_by_hash() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    assert text.count("--require-hashes") == 3
    assert "USER 10001" in text
    stages = re.findall(r"^FROM \S+ AS ([\w-]+)$", text, re.MULTILINE)
    assert stages == ["build", "build-training", "base", "training", "serving"]


@pytest.mark.parametrize("unit", ["seqroute.service", "seqroute-nightly.service", "seqroute-nightly.timer"])
def test_systemd_units_parse_and_keep_the_system_read_only(unit: str) -> None:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(DEPLOY / "systemd" / unit)
    if unit.endswith(".service"):
        assert parser["Service"]["ProtectSystem"] == "strict"
        assert parser["Service"]["User"] == "seqroute"
    else:
        assert parser["Timer"]["Persistent"] == "true"


def documents(autoscaling: bool) -> list[dict[str, Any]]:
    """The chart's objects, rendered by a reader of the few template functions that it uses."""
    values = yaml.safe_load((DEPLOY / "helm/seqroute/values.yaml").read_text())
    values["autoscaling"]["enabled"] = autoscaling
    found: list[dict[str, Any]] = []
    for path in sorted((DEPLOY / "helm/seqroute/templates").glob("*.yaml")):
        found += [made for made in yaml.safe_load_all(render(path.read_text(), values)) if made]
    return found


def render(template: str, values: dict[str, Any]) -> str:
    """`if`, `if not`, `with`, `range`, `toYaml | nindent`, `indent`, `quote` and `add`: what the chart is made of."""
    scope: list[tuple[str, bool, Any]] = []
    out: list[str] = []
    pieces = re.split(r"(\{\{-?.*?-?\}\})", template)
    position = 0

    def value(path: str, dot: Any) -> Any:
        if path == ".":
            return dot
        if path == ".Release.Name":
            return "seqroute"
        at: Any = values
        for part in path.removeprefix(".Values.").split("."):
            at = at[part]
        return at

    def put(text: str) -> None:
        if all(active for _, active, _ in scope):
            out.append(text)

    while position < len(pieces):
        piece = pieces[position]
        position += 1
        if not piece.startswith("{{"):
            put(piece)
            continue
        if piece.startswith("{{-") and out:
            out[-1] = out[-1].rstrip()
        words = piece.strip("{}-").split()
        dot = next((where for kind, _, where in reversed(scope) if kind in ("with", "range")), None)
        match words:
            case ["if", "not", path]:
                scope.append(("if", not value(path, dot), None))
            case ["if", path]:
                scope.append(("if", bool(value(path, dot)), None))
            case ["with", path]:
                scope.append(("with", bool(value(path, dot)), value(path, dot)))
            case ["range", path]:
                body, end = pieces[position : position + 3], position + 4
                put("".join(body[0] + str(item) + body[2] for item in value(path, dot)))
                assert pieces[end - 1].strip("{}- ") == "end"
                position = end
            case ["end"]:
                scope.pop()
            case ["add", path, number]:
                put(str(value(path, dot) + int(number)))
            case ["toYaml", path, "|", "nindent", count]:
                lines = yaml.safe_dump(value(path, dot)).splitlines()
                put("\n" + "\n".join(" " * int(count) + line for line in lines))
            case [path, "|", "indent", count]:
                put("\n".join(" " * int(count) + line for line in value(path, dot).splitlines()))
            case [path, "|", "quote"]:
                put(json.dumps(value(path, dot)))
            case [path]:
                put(str(value(path, dot)))
            case _:
                raise AssertionError(f"unknown template action {piece}")
    return "".join(out)


def test_the_chart_renders_every_object_with_its_default_values() -> None:
    made = documents(autoscaling=False)
    assert sorted(each["kind"] for each in made) == [
        "ConfigMap", "CronJob", "Deployment", "Job", "NetworkPolicy", "PersistentVolumeClaim", "PodDisruptionBudget",
        "Service",
    ]  # fmt: skip
    (deployment,) = [each for each in made if each["kind"] == "Deployment"]
    pod = deployment["spec"]["template"]["spec"]
    assert deployment["spec"]["replicas"] == 2
    assert pod["terminationGracePeriodSeconds"] == 30 + 5 + 15  # the drain, after preStop, and the exit
    assert pod["securityContext"]["runAsNonRoot"] is True
    (container,) = pod["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert container["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "5"]
    assert {"name": "SEQROUTE_LOG_FORMAT", "value": "json"} in container["env"]
    (policy,) = [each for each in made if each["kind"] == "NetworkPolicy"]
    assert [port["port"] for port in policy["spec"]["egress"][0]["ports"]] == [53, 53, 443, 5432]


def test_the_chart_with_autoscaling_leaves_the_number_of_replicas_to_it() -> None:
    made = documents(autoscaling=True)
    (deployment,) = [each for each in made if each["kind"] == "Deployment"]
    assert "replicas" not in deployment["spec"]
    assert "HorizontalPodAutoscaler" in {each["kind"] for each in made}
