# SPDX-License-Identifier: Apache-2.0
"""Kubernetes' Pod Security Standards, of the fields that pods of Linux have: what a pod's specification does
that the profiles "baseline" and "restricted" forbid."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Spec = dict[str, Any]

BASELINE_CAPABILITIES = {
    "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE",
    "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
}  # fmt: skip
RESTRICTED_CAPABILITIES = {"NET_BIND_SERVICE"}
RESTRICTED_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim", "projected",
    "secret",
}  # fmt: skip
SAFE_SYSCTLS = {
    "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
}  # fmt: skip
SELINUX_TYPES = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}


def containers(pod: Spec) -> list[Spec]:
    kinds = ("initContainers", "containers", "ephemeralContainers")
    return [container for kind in kinds for container in pod.get(kind) or []]


def context(thing: Spec) -> Spec:
    found: Spec = thing.get("securityContext") or {}
    return found


def in_baseline(pod: Spec) -> Iterator[str]:
    """What the profile "baseline" forbids."""
    yield from (f"{name} is set" for name in ("hostNetwork", "hostPID", "hostIPC") if pod.get(name))
    for volume in pod.get("volumes") or []:
        if "hostPath" in volume:
            yield f"the volume {volume['name']} is a hostPath"
    for sysctl in context(pod).get("sysctls") or []:
        if sysctl["name"] not in SAFE_SYSCTLS:
            yield f"the sysctl {sysctl['name']} is set"
    for thing in (pod, *containers(pod)):
        selinux = context(thing).get("seLinuxOptions") or {}
        if selinux.get("type", "") not in SELINUX_TYPES or selinux.get("user") or selinux.get("role"):
            yield "SELinux options are set"
        for profile in ("seccompProfile", "appArmorProfile"):
            if (context(thing).get(profile) or {}).get("type") == "Unconfined":
                yield f"{profile} is Unconfined"
    for container in containers(pod):
        name, security = container["name"], context(container)
        if security.get("privileged"):
            yield f"{name} is privileged"
        for added in sorted(
            set((security.get("capabilities") or {}).get("add") or []) - BASELINE_CAPABILITIES
        ):
            yield f"{name} adds {added}"
        if security.get("procMount", "Default") != "Default":
            yield f"{name} has another /proc"
        if any(port.get("hostPort") for port in container.get("ports") or []):
            yield f"{name} has a port of the host"


def in_restricted(pod: Spec) -> Iterator[str]:
    """What the profile "restricted" forbids."""
    yield from in_baseline(pod)
    for volume in pod.get("volumes") or []:
        for kind in sorted(set(volume) - {"name"} - RESTRICTED_VOLUMES - {"hostPath"}):
            yield f"the volume {volume['name']} is a {kind}"
    if context(pod).get("runAsUser") == 0:
        yield "the pod runs as root"
    for container in containers(pod):
        name, security = container["name"], context(container)
        both = {**context(pod), **security}
        capabilities = security.get("capabilities") or {}
        if security.get("allowPrivilegeEscalation") is not False:
            yield f"{name} may gain privileges"
        if both.get("runAsNonRoot") is not True:
            yield f"{name} may run as root"
        if security.get("runAsUser") == 0:
            yield f"{name} runs as root"
        if (both.get("seccompProfile") or {}).get("type") not in ("RuntimeDefault", "Localhost"):
            yield f"{name} has no seccomp profile"
        if "ALL" not in (capabilities.get("drop") or []):
            yield f"{name} keeps capabilities"
        for added in sorted(
            set(capabilities.get("add") or []) & BASELINE_CAPABILITIES - RESTRICTED_CAPABILITIES
        ):
            yield f"{name} adds {added}"
