"""The Kubernetes definitions: what their overlays make of the base, put together here as kustomize does it, against the
fields that KubeRay's v1 resources have. The schemas themselves and an operator are not at hand."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).parents[1] / "deploy" / "kubernetes"
OVERLAYS = ("local", "aws")
FIELDS = {
    "cluster": {
        "authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions", "headGroupSpec",
        "headServiceAnnotations", "managedBy", "rayVersion", "suspend", "workerGroupSpecs",
    },
    "autoscaler": {
        "env", "envFrom", "idleTimeoutSeconds", "image", "imagePullPolicy", "resources", "securityContext",
        "upscalingMode", "version", "volumeMounts",
    },
    "head": {"enableIngress", "headService", "labels", "rayStartParams", "resources", "serviceType", "template"},
    "worker": {
        "groupName", "idleTimeoutSeconds", "labels", "maxReplicas", "minReplicas", "numOfHosts", "rayStartParams",
        "replicas", "resources", "scaleStrategy", "suspend", "template",
    },
    "job": {
        "activeDeadlineSeconds", "backoffLimit", "clusterSelector", "deletionStrategy", "entrypoint",
        "entrypointNumCpus", "entrypointNumGpus", "entrypointResources", "jobId", "managedBy", "metadata",
        "rayClusterSpec", "runtimeEnvYAML", "shutdownAfterJobFinishes", "submissionMode", "submitterConfig",
        "submitterPodTemplate", "suspend", "ttlSecondsAfterFinished",
    },
}  # fmt: skip
"""Of KubeRay's API reference, v1."""
Tree = dict[str, Any]


@cache
def _made(folder: Path) -> list[Tree]:
    tree = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert set(tree) <= {"apiVersion", "kind", "namespace", "resources", "images", "patches"}
    found: list[Tree] = []
    for name in tree["resources"]:
        place = (folder / name).resolve()
        assert place.exists(), f"{folder}: names {name}"
        inner = _made(place) if place.is_dir() else list(yaml.safe_load_all(place.read_text()))
        found += copy.deepcopy(inner)
    for resource in found:
        if "namespace" in tree and resource["kind"] != "Namespace":
            resource["metadata"]["namespace"] = tree["namespace"]
    for patch in tree.get("patches", []):
        target = patch["target"]
        meant = [
            r for r in found
            if r["kind"] == target["kind"] and target.get("name") in (None, r["metadata"]["name"])
        ]  # fmt: skip
        assert meant, f"{folder}: patches {target}, which is not there"
        for resource in meant:
            for one in yaml.safe_load(patch["patch"]):
                _apply(resource, one)
    return found


def _apply(tree: Any, patch: Tree) -> None:
    """JSON patch (RFC 6902), the three operations that are used."""
    *path, last = patch["path"].strip("/").split("/")
    for key in path:
        tree = tree[int(key)] if isinstance(tree, list) else tree[key]
    if isinstance(tree, list) and last == "-":
        tree.append(patch["value"])
        return
    key = int(last) if isinstance(tree, list) else last
    if patch["op"] == "add" and isinstance(tree, dict):
        assert key not in tree
    else:
        tree[key]  # what is replaced or removed has to be there
    if patch["op"] == "remove":
        del tree[key]
    else:
        tree[key] = copy.deepcopy(patch["value"])


def _one(overlay: str, kind: str) -> Tree:
    (found,) = [r for r in _made(FOLDER / "overlays" / overlay) if r["kind"] == kind]
    return found


def _pods(overlay: str) -> dict[str, Tree]:
    spec = _one(overlay, "RayCluster")["spec"]
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    return {"head": spec["headGroupSpec"]["template"]["spec"]} | {
        name: group["template"]["spec"] for name, group in groups.items()
    }


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_cluster_has_fields_that_kuberay_knows_and_groups_that_start_at_nothing(overlay: str) -> None:
    cluster = _one(overlay, "RayCluster")
    spec = cluster["spec"]
    assert (cluster["apiVersion"], cluster["metadata"]["namespace"]) == ("ray.io/v1", "oacir")
    assert set(spec) <= FIELDS["cluster"]
    assert set(spec["autoscalerOptions"]) <= FIELDS["autoscaler"]
    assert set(spec["headGroupSpec"]) <= FIELDS["head"]
    assert spec["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}  # KubeRay takes texts alone
    assert spec["authOptions"] == {"mode": "token"}
    for group in spec["workerGroupSpecs"]:
        assert set(group) <= FIELDS["worker"]
        assert group["replicas"] == group["minReplicas"] == 0 < group["maxReplicas"]
    names = [group["groupName"] for group in spec["workerGroupSpecs"]]
    assert names == (["cpu"] if overlay == "local" else ["cpu", "gpu"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_pod_is_root_or_unbounded(overlay: str) -> None:
    for name, pod in _pods(overlay).items():
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 1000  # that of the image
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        asked, most = container["resources"]["requests"], container["resources"]["limits"]
        assert asked["memory"] == most["memory"]
        assert asked.get("nvidia.com/gpu") == most.get("nvidia.com/gpu") == ("8" if name == "gpu" else None)
        assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
        assert pod["serviceAccountName"] == ("oacir-head" if name == "head" else "oacir-worker")
        shm = next(v["emptyDir"] for v in pod["volumes"] if v["name"] == "shm")
        assert shm["medium"] == "Memory"
        assert _gib(shm["sizeLimit"]) <= _gib(most["memory"]) / 3 + 1


def _gib(text: str) -> float:
    return float(text.removesuffix("Gi"))


def test_the_ray_version_is_the_pinned_one() -> None:
    pins = dict(
        line.strip().split("==") for line in (FOLDER.parents[1] / "constraints.txt").open() if "==" in line
    )
    assert _one("aws", "RayCluster")["spec"]["rayVersion"] == pins["ray"]


def test_images_are_targets_of_the_dockerfile() -> None:
    text = (FOLDER.parent / "Dockerfile").read_text()
    images = {pod["containers"][0]["image"] for pod in _pods("aws").values()}
    assert images == {"oacir:cpu", "oacir:cuda"}
    assert all(f" AS {image.partition(':')[2]}\n" in text for image in images)


def test_nobody_outside_reaches_the_pods() -> None:
    policy = _one("aws", "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    assert policy["podSelector"]["matchLabels"] == {
        "ray.io/cluster": _one("aws", "RayCluster")["metadata"]["name"]
    }
    assert all(rule["from"] for rule in policy["ingress"])
    assert all("ports" in rule for rule in policy["ingress"] if "namespaceSelector" in rule["from"][0])


def test_on_aws_pods_have_roles_and_no_keys() -> None:
    accounts = [r for r in _made(FOLDER / "overlays" / "aws") if r["kind"] == "ServiceAccount"]
    assert len(accounts) == 2
    assert all("eks.amazonaws.com/role-arn" in account["metadata"]["annotations"] for account in accounts)
    for pod in _pods("aws").values():
        names = [variable["name"] for variable in pod["containers"][0]["env"]]
        assert "AWS_REGION" in names
        assert not [name for name in names if "KEY" in name or "SECRET" in name or "TOKEN" in name]
    files = [file for file in FOLDER.rglob("*.yaml") if "000000000000" in file.read_text()]
    lines = [line for file in files for line in file.read_text().splitlines() if "000000000000" in line]
    assert lines
    assert all("# CHANGE" in line for line in lines)


def test_the_job_is_a_command_that_is_understood() -> None:
    import shlex

    from infra import cli
    from infra.base.config import load_recipe

    job = yaml.safe_load((FOLDER / "job" / "train.yaml").read_text())
    assert set(job["spec"]) <= FIELDS["job"]
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": _one("aws", "RayCluster")["metadata"]["name"]}
    # what KubeRay's operator refuses beside clusterSelector, although each is a field
    assert not {"backoffLimit", "suspend", "rayClusterSpec", "ttlSecondsAfterFinished"} & set(job["spec"])
    assert job["spec"]["submissionMode"] == "HTTPMode"
    program, *words = shlex.split(job["spec"]["entrypoint"])
    call = cli._parse(words)
    load_recipe(cli._verb(call.verb).load()[0], call.config, call.overrides)
    assert (program, call.root) == ("oacir", "s3://bucket/oacir")
