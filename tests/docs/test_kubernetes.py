# SPDX-License-Identifier: Apache-2.0
"""packaging/kubernetes: the API knows every field, pods have the rights that docs/KUBERNETES.md says and no
more, and what the manifests say goes together: it is run, on the emulated driver, without a cluster."""

from __future__ import annotations

import copy
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from docs.podsecurity import in_baseline, in_restricted
from docs.sources import ROOT
from harness.broker import run_program
from harness.pages import Block, Reader
from harness.stage import Desk, Stage

FOLDER = ROOT / "packaging/kubernetes"
MANIFESTS = [
    "namespace.yaml",
    "config.yaml",
    "daemonset.yaml",
    "tenant.yaml",
    "engine.yaml",
    "controller.yaml",
]
NOT_MANIFESTS = ["engine-hostpath.yaml", "engine-sleep.yaml", "kustomization.yaml"]
VERSIONS = ["1.28", "1.31", "1.34", "1.37"]

Object = dict[str, Any]


def load(name: str) -> list[Object]:
    return [found for found in yaml.safe_load_all((FOLDER / name).read_text()) if found]


def find(name: str, kind: str) -> Object:
    (found,) = (item for item in load(name) if item["kind"] == kind)
    return found


def pod_of(workload: Object) -> Object:
    spec: Object = workload["spec"]["template"]["spec"]
    return spec


DAEMON = pod_of(find("daemonset.yaml", "DaemonSet"))
ENGINE = pod_of(find("engine.yaml", "Deployment"))
CONTROLLER = pod_of(find("controller.yaml", "Deployment"))
CONFIG = find("config.yaml", "ConfigMap")["data"]["kvcachedd.conf"]


def patched() -> Object:
    """engine.yaml with engine-hostpath.yaml: lists are merged by name, and null removes."""
    (patch,) = load("engine-hostpath.yaml")
    workload = copy.deepcopy(find("engine.yaml", "Deployment"))
    volumes = {volume["name"]: volume for volume in pod_of(workload)["volumes"]}
    for change in pod_of(patch)["volumes"]:
        volumes[change["name"]].update(change)
    pod_of(workload)["volumes"] = [
        {key: value for key, value in volume.items() if value is not None} for volume in volumes.values()
    ]
    return workload


def able_to_sleep() -> Object:
    """engine.yaml with engine-sleep.yaml: containers and variables are merged by name."""
    (patch,) = load("engine-sleep.yaml")
    workload = copy.deepcopy(find("engine.yaml", "Deployment"))
    (container,), (change,) = pod_of(workload)["containers"], pod_of(patch)["containers"]
    assert change["name"] == container["name"]
    named = {variable["name"] for variable in change["env"]}
    kept = [variable for variable in container["env"] if variable["name"] not in named]
    container.update({**change, "env": kept + change["env"]})
    return workload


def test_all_files_are_looked_at() -> None:
    assert sorted(path.name for path in FOLDER.glob("*.yaml")) == sorted(MANIFESTS + NOT_MANIFESTS)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", MANIFESTS)
def test_the_api_knows_every_field(name: str, version: str) -> None:
    for item in load(name):
        assert kubernetes_validate.validate(item, version, strict=True) == version


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("make", [patched, able_to_sleep])
def test_the_api_knows_the_patched_engine(make: Callable[[], Object], version: str) -> None:
    assert kubernetes_validate.validate(make(), version, strict=True) == version


def test_what_the_api_does_not_know_is_noticed() -> None:
    wrong = copy.deepcopy(find("daemonset.yaml", "DaemonSet"))
    pod_of(wrong)["hostpid"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


def test_kustomization() -> None:
    """It has the daemon's manifests, and renames the images that they name."""
    (kustomization,) = load("kustomization.yaml")
    assert set(kustomization["resources"]) == {"namespace.yaml", "config.yaml", "daemonset.yaml"}
    images = {c["image"] for kind in ("initContainers", "containers") for c in DAEMON[kind]}
    assert images == {f"{image['name']}:{image['newTag']}" for image in kustomization["images"]}


# ---- Rights ----


def test_the_engine_is_restricted() -> None:
    assert list(in_restricted(ENGINE)) == []
    assert list(in_restricted(pod_of(able_to_sleep()))) == []
    namespace = find("tenant.yaml", "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_the_controller_is_restricted_and_has_no_gpu() -> None:
    assert list(in_restricted(CONTROLLER)) == []
    assert CONTROLLER["automountServiceAccountToken"] is False
    assert "runtimeClassName" not in CONTROLLER
    (container,) = CONTROLLER["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    namespaces = {item["metadata"]["namespace"] for item in load("controller.yaml")}
    assert namespaces == {find("tenant.yaml", "Namespace")["metadata"]["name"]}


def test_a_hostpath_is_all_that_keeps_the_other_engine_from_baseline() -> None:
    assert list(in_baseline(pod_of(patched()))) == ["the volume kvcached is a hostPath"]
    assert list(in_restricted(pod_of(patched()))) == ["the volume kvcached is a hostPath"]


def test_the_daemon_has_folders_of_the_host_and_no_other_privilege() -> None:
    folders = ["the volume sockets is a hostPath", "the volume state is a hostPath"]
    assert list(in_baseline(DAEMON)) == folders
    main_only = {**DAEMON, "initContainers": []}
    assert list(in_restricted(main_only)) == folders
    first = [complaint for complaint in in_restricted(DAEMON) if complaint not in folders]
    assert first == [
        "folders may run as root",
        "folders runs as root",
        "folders adds CHOWN",
        "folders adds FOWNER",
    ]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"hostPID": True}, "hostPID is set"),
        ({"securityContext": {}}, "engine may run as root"),
        ({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}, "the volume v is a hostPath"),
        ({"volumes": [{"name": "v", "nfs": {}}]}, "the volume v is a nfs"),
        ({"containers": [{"name": "c", "securityContext": {"privileged": True}}]}, "c is privileged"),
        ({"containers": [{"name": "c"}]}, "c keeps capabilities"),
        ({"containers": [{"name": "c"}]}, "c may gain privileges"),
        ({"containers": [{"name": "c", "ports": [{"hostPort": 1}]}]}, "c has a port of the host"),
        (
            {"containers": [{"name": "c", "securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}}]},
            "c adds SYS_ADMIN",
        ),
    ],
)
def test_profiles_notice(change: Object, complaint: str) -> None:
    assert complaint in list(in_restricted({**ENGINE, **change}))


# ---- What goes together ----


def mounts(container: Object) -> dict[str, str]:
    return {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}


def host_paths(pod: Object) -> dict[str, str]:
    return {v["name"]: v["hostPath"]["path"] for v in pod["volumes"] if "hostPath" in v}


def test_folders_agree() -> None:
    """A socket's path is the same in the configuration, in the daemon's container and on the host, and the
    tenant's volume is the folder of its socket."""
    (container,) = DAEMON["containers"]
    paths = host_paths(DAEMON)
    assert paths == {name: mounts(container)[name] for name in paths} == mounts(DAEMON["initContainers"][0])
    assert DAEMON["initContainers"][0]["command"][-2:] == list(paths.values())
    volume = find("tenant.yaml", "PersistentVolume")
    assert f"socket = {volume['spec']['hostPath']['path']}/gpu%i.sock\n" in CONFIG
    assert host_paths(pod_of(patched()))["kvcached"] == volume["spec"]["hostPath"]["path"]
    claim = find("tenant.yaml", "PersistentVolumeClaim")
    reference = volume["spec"]["claimRef"]
    assert (reference["namespace"], reference["name"]) == (
        claim["metadata"]["namespace"],
        claim["metadata"]["name"],
    )
    assert claim["spec"]["volumeName"] == volume["metadata"]["name"]
    assert mounts(ENGINE["containers"][0])["kvcached"] == "/run/kvcached"
    claims = [v["persistentVolumeClaim"]["claimName"] for v in ENGINE["volumes"] if v["name"] == "kvcached"]
    assert claims == [claim["metadata"]["name"]]


def test_the_daemons_user_is_the_one_that_engines_trust() -> None:
    variables = {v["name"]: v["value"] for v in ENGINE["containers"][0]["env"]}
    user = str(DAEMON["securityContext"]["runAsUser"])
    assert variables == {"ENABLE_KVCACHED": "true", "KVCACHED_DAEMON_UID": user}
    command = DAEMON["initContainers"][0]["command"]
    assert command[command.index("-o") + 1] == command[command.index("-g") + 1] == user


def test_the_controllers_services_have_pods() -> None:
    """And so has the policy: only the controller reaches an engine that can be put to sleep."""
    found = [item for item in load("controller.yaml") if item["kind"] == "Service"]
    services = {item["metadata"]["name"]: item["spec"] for item in found}
    workloads = {"e": find("engine.yaml", "Deployment"), "c": find("controller.yaml", "Deployment")}
    labels = {name: w["spec"]["template"]["metadata"]["labels"] for name, w in workloads.items()}
    assert services["llama-engines"]["selector"] == labels["e"]
    assert services["llama-engines"]["clusterIP"] == "None"
    assert services["kvcached-controller"]["selector"] == labels["c"]
    (port,) = services["kvcached-controller"]["ports"]
    (container,) = CONTROLLER["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert (port["targetPort"], port["port"]) == ("http", ports["http"])
    policy = find("controller.yaml", "NetworkPolicy")["spec"]
    assert policy["podSelector"]["matchLabels"] == labels["e"]
    (rule,) = policy["ingress"]
    assert rule["from"] == [{"podSelector": {"matchLabels": labels["c"]}}]
    assert rule["ports"] == [{"port": p["containerPort"]} for p in ENGINE["containers"][0]["ports"]]


def test_the_configuration_is_right(stage: Stage, tmp_path: Path) -> None:
    path = tmp_path / "kvcachedd.conf"
    path.write_text(CONFIG)
    command = [str(stage.find("bin/kvcachedd")), "--check-config", "--config", str(path)]
    checked = run_program(command, {})
    assert (checked.rc, checked.out, checked.err) == (0, "", "")


MAY_MOUNT = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode == 0

# What a container has: the one folder, read-only, where the manifest mounts it, and nothing else of /run.
CONTAINER = """
exec unshare --mount sh -c '
mount -t tmpfs tmpfs /run && mkdir /run/kvcached && mount --bind "$1" /run/kvcached &&
mount -o remount,bind,ro /run/kvcached && shift && exec "$@"
' sh "$PWD/run/tenant-a" env -u RUNTIME_DIRECTORY -u KVCACHED_SOCKET ./engine llama 5
"""


SHOW = """import json, sys
(i,) = json.load(sys.stdin)
print(i["domain"], i["limit_source"], i["granted_bytes"] >= 5 << 30)"""


@pytest.mark.emulator
@pytest.mark.skipif(not MAY_MOUNT, reason="not permitted here: unshare --mount")
def test_a_tenants_engine_finds_its_daemon(desk: Desk) -> None:
    """The daemon with its arguments and configuration, elsewhere; the engine in what a container has."""
    run, state = desk.folder / "run", desk.folder / "state"
    config = CONFIG.replace("/run/kvcached", str(run)).replace("/var/lib/kvcached", str(state))
    (desk.folder / "kvcachedd.conf").write_text(config)
    (container,) = DAEMON["containers"]
    arguments = " ".join(container["args"]).replace("/etc/kvcached", str(desk.folder))
    probe = " ".join(container["readinessProbe"]["exec"]["command"]).replace("/run/kvcached", str(run))
    compile_it = "cc -o engine docs/examples/engine.c $(pkg-config --cflags --libs kvclient)\n"
    show = f"kvctl --socket {run}/gpu0.sock list --json llama | python3 -c '{SHOW}'"
    Reader(desk.folder, desk.environment).follow(
        [
            Block("daemonset.yaml", 1, "sh", "", "", compile_it),
            Block("daemonset.yaml", 2, "sh", "background", "", f"kvcachedd {arguments} --emulate 80G\n"),
            Block("daemonset.yaml", 3, "sh", "", "", f"{probe}\n"),
            Block("engine.yaml", 4, "sh", "background", "has 5.0 GiB", CONTAINER),
            Block("engine.yaml", 5, "sh", "again", "", show, "tenant-a config True\n"),
        ]
    )
