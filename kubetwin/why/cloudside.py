"""Steps 1 to 7: from the Kubernetes API to the link between CloudCore and the node. Pure."""

from __future__ import annotations

from typing import Final

from cloudedge.queries import NODE_AWAY, NODE_SILENT
from dmi.freshness import epoch_ms
from kubetwin.kubectl import GROUP
from kubetwin.lenient import mapping, text
from kubetwin.why.channel import advice_for
from kubetwin.why.seen import Seen, declared_problems
from kubetwin.why.steps import Step, StepNumber, step

__all__ = ["cloud_steps"]

NEW_DEVICE_S: Final = 10.0
"""So long CloudCore may take to make a DeviceStatus."""
_INSTALL_CRDS: Final = "kubetwin crds | kubectl apply -f -"


def cloud_steps(seen: Seen) -> list[Step]:
    return [_api(seen), _device(seen), _model(seen), _declared(seen), _node(seen), _cloudcore(seen), _link(seen)]


def _api(seen: Seen) -> Step:
    api = seen.evidence.api
    if api.absent:
        return step(StepNumber.API, "unknown", f"not asked: {api.absent}")
    if api.trouble:
        where = api.server or "the API server"
        return step(
            StepNumber.API, "broken", f"{where}: {api.trouble}",
            "is the server up, is its address in the kubeconfig right? kubectl get --raw /readyz",
        )  # fmt: skip
    return step(StepNumber.API, "ok", f"{api.server or 'it'} answers")


def _not_served(number: StepNumber, plural: str) -> Step:
    return step(number, "broken", f"this cluster does not serve {plural} of {GROUP}/v1beta1", _INSTALL_CRDS)


def _device(seen: Seen) -> Step:
    api, facts = seen.evidence.api, seen.facts
    if not api.seen:
        if facts is not None and facts.declared:
            return step(StepNumber.DEVICE, "unknown", f"edge core has it in version {facts.declared_version or '?'}")
        return step(StepNumber.DEVICE, "unknown", "only the Kubernetes API can tell")
    if "devices" in api.kinds_missing:
        return _not_served(StepNumber.DEVICE, "devices")
    if api.device is None:
        ns, name = seen.evidence.namespace, seen.evidence.name
        return step(
            StepNumber.DEVICE, "broken", f"there is no Device {name!r} in namespace {ns!r}",
            f"is the name right? kubectl get devices -n {ns}; else kubectl apply -f its manifest",
        )  # fmt: skip
    metadata = mapping(api.device, "metadata")
    created = epoch_ms(metadata.get("creationTimestamp"))
    if metadata.get("deletionTimestamp"):
        return step(
            StepNumber.DEVICE, "broken", "it is being deleted, and a finalizer keeps it",
            "look at metadata.finalizers", at_ms=epoch_ms(metadata["deletionTimestamp"]),
        )  # fmt: skip
    message = f"created, now in version {metadata.get('resourceVersion') or '?'}"
    return step(StepNumber.DEVICE, "ok", message, at_ms=created, age_s=seen.age_s(created))


def _model(seen: Seen) -> Step:
    api = seen.evidence.api
    if not api.seen or api.device is None:
        return step(StepNumber.MODEL, "skipped" if api.seen else "unknown", "only the Device and the API can tell")
    name = text(api.device, "spec", "deviceModelRef", "name")
    if not name:
        return step(
            StepNumber.MODEL, "broken", "spec.deviceModelRef.name is empty", "name a DeviceModel of the same namespace"
        )
    if "devicemodels" in api.kinds_missing:
        return _not_served(StepNumber.MODEL, "devicemodels")
    if api.model_trouble:
        return step(StepNumber.MODEL, "unknown", api.model_trouble)
    if api.model is None:
        ns = seen.evidence.namespace
        return step(
            StepNumber.MODEL, "broken", f"spec.deviceModelRef.name: there is no DeviceModel {name!r} in {ns!r}",
            f"kubectl get devicemodels -n {ns} lists those there are; a model must be in its devices' namespace",
        )  # fmt: skip
    created = epoch_ms(mapping(api.model, "metadata").get("creationTimestamp"))
    return step(StepNumber.MODEL, "ok", f"{name} is there", at_ms=created, age_s=seen.age_s(created))


def _declared(seen: Seen) -> Step:
    number, facts = StepNumber.DECLARATION, seen.facts
    edit = f"kubectl edit device -n {seen.evidence.namespace} {seen.evidence.name}"
    if seen.invalid:
        return step(number, "broken", seen.invalid, edit)
    if seen.device is not None and seen.model is not None:
        problems = [problem.message for problem in declared_problems(seen.device, seen.model)]
        if not problems and not _runs(seen):
            problems = list(seen.evidence.driver_errors)
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            return step(
                number, "broken", problems[0] + more, f"{edit}; kubetwin mapper check finds all before they are applied"
            )
        count = len(seen.device.properties)
        return step(number, "ok", f"{count} {'property fits' if count == 1 else 'properties fit'} the model")
    if facts is not None and facts.declared:
        if facts.problem:
            return step(number, "broken", f"edge core says: {facts.problem}", edit)
        return step(number, "ok", "edge core has nothing against it")
    return step(number, "skipped" if seen.evidence.api.seen else "unknown", "there is no declaration to look at")


def _runs(seen: Seen) -> bool:
    """The mapper, of whichever make, is content: then our driver's opinion does not count."""
    if seen.facts is not None and seen.facts.declared:
        return seen.facts.state in ("online", "ok") and not (seen.facts.mapper and seen.facts.mapper.refusal)
    return seen.status is not None and seen.status.state in ("online", "ok")


def _node(seen: Seen) -> Step:
    number = StepNumber.NODE
    if seen.evidence.api.device is not None:
        if not seen.node:
            return step(
                number, "broken", "spec.nodeName is empty, so the device is sent nowhere",
                "name the edge node that reaches the device: "
                f"kubectl patch device -n {seen.evidence.namespace} {seen.evidence.name} --type merge "
                """-p '{"spec":{"nodeName":"NODE"}}'""",
            )  # fmt: skip
        return step(number, "ok", seen.node)
    if seen.node:
        return step(number, "ok", f"{seen.node}, by edge core's word")
    return step(number, "skipped" if seen.evidence.api.seen else "unknown", "there is no declaration to look at")


def _cloudcore(seen: Seen) -> Step:
    number, cloud, facts = StepNumber.CLOUDCORE, seen.evidence.cloud, seen.facts
    linked = facts is not None and facts.cloud_connected
    if cloud.answered:
        return step(number, "ok", "it answered a question put into the DeviceStatus")
    if seen.evidence.api.seen and seen.evidence.api.device is None:
        return step(number, "skipped", "without a Device it cannot be asked")
    if "devicestatuses" in seen.evidence.api.kinds_missing:
        return _not_served(number, "devicestatuses")
    if cloud.silent_s:
        told = f"it did not answer within {cloud.silent_s:.0f} s"
        if seen.status is not None and not seen.status.ours:
            return step(number, "unknown", f"{told}: KubeEdge's own does not, the rest is judged by what it wrote")
        more = ", though the node is connected to it: does it reach the Kubernetes API?" if linked else ""
        return step(number, "broken", told + more, "is it running, with a kubeconfig of this cluster? Look at its log")
    if seen.evidence.api.seen and seen.evidence.api.status is None and not seen.evidence.api.status_trouble:
        created = epoch_ms(mapping(seen.evidence.api.device or {}, "metadata").get("creationTimestamp"))
        young = (age_s := seen.age_s(created)) is not None and age_s < NEW_DEVICE_S
        return step(
            number, "broken", "there is no DeviceStatus: CloudCore makes one as soon as it sees the Device",
            "is CloudCore running, with a kubeconfig of this cluster? Look at its log", passing=young,
        )  # fmt: skip
    if linked:
        return step(number, "ok", "edge core is connected to it")
    return step(number, "unknown", f"not asked: {cloud.absent or 'no API'}")


def _link(seen: Seen) -> Step:
    number, facts, edge = StepNumber.LINK, seen.facts, seen.evidence.edge
    if facts is not None and seen.facts_from == "edge core":
        since = facts.cloud_since_ms
        if facts.cloud_connected and seen.evidence.cloud.reason == NODE_SILENT:
            return step(
                number, "broken", f"connected to {facts.cloud_url}, and CloudCore's question did not get through",
                "something between the two lets nothing pass, or little: a firewall, NAT, VPN or proxy. Either end "
                "notices within half a minute, and edge core dials again", at_ms=since, age_s=seen.edge_age_s(since),
            )  # fmt: skip
        if facts.cloud_connected:
            return step(number, "ok", f"connected to {facts.cloud_url}", at_ms=since, age_s=seen.edge_age_s(since))
        trouble = facts.cloud_trouble or "not connected yet"
        return step(
            number, "broken", f"edge core does not reach {facts.cloud_url or 'the cloud'}: {trouble}",
            advice_for(trouble), at_ms=since, age_s=seen.edge_age_s(since), passing=not facts.cloud_trouble,
        )  # fmt: skip
    if facts is not None:
        since = facts.cloud_since_ms
        return step(number, "ok", f"{facts.node} answered", at_ms=since, age_s=seen.edge_age_s(since))
    if not seen.node and seen.evidence.api.device is not None:
        return step(number, "skipped", "no node is named")
    if edge.trouble and not seen.elsewhere:
        return step(
            number, "broken", f"edge core does not answer at {edge.socket}: {edge.trouble}",
            "is edgecore running here? Start it, or restart it when it hangs; its log says more",
        )  # fmt: skip
    also = f"; here {edge.socket}: {edge.trouble}" if edge.trouble else ""
    on_node = f"on {seen.node or 'the node'}:"
    error = seen.evidence.cloud.error
    if _said_away(seen):
        shown = seen.status is not None and seen.status.has("NodeConnected", "False")
        since = seen.status.changed_ms.get("NodeConnected", 0) if seen.status and shown else 0
        why = error or (seen.status.reason if seen.status else "")
        look = (
            f"{on_node} is edgecore running, and what does its log say of the cloud? kubetwin why there shows its half"
        )
        return step(
            number, "broken", f"CloudCore says: {why or 'not connected'}{also}", advice_for(why, look),
            at_ms=since, age_s=seen.age_s(since),
        )  # fmt: skip
    if seen.evidence.cloud.reason == NODE_SILENT:
        todo = f"{on_node} restart edgecore if it hangs; its log says more"
        return step(number, "broken", f"CloudCore says: {error}{also}", todo)
    if error and seen.status is not None and seen.status.has("NodeConnected", "True"):
        return step(number, "ok", f"CloudCore has it connected, but: {error}{also}")
    return step(number, "unknown", (error or "neither CloudCore nor edge core said") + also)


def _said_away(seen: Seen) -> bool:
    """Its conditions follow a link that is lost after a grace; its answer does at once."""
    if seen.evidence.cloud.reason == NODE_AWAY:
        return True
    return seen.evidence.cloud.answered and seen.status is not None and seen.status.has("NodeConnected", "False")
