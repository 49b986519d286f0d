"""Every request of an edge core of upstream's, answered as upstream answers it (channel contract 5.4)."""

import base64
import json
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cloudcore.edgecontroller.kinds import (
    CLAIMS,
    EVENTS,
    LEASES,
    NODES,
    PODS,
    SERVICE_ACCOUNTS,
    SIGNING_REQUESTS,
    VOLUME_ATTACHMENTS,
    VOLUMES,
)
from cloudcore.kube import Key, NotFound
from cloudedge import Message
from tests.cloudcore.edge_world import ask, edge_cloud, furnish, pod, recorded, said, text
from tests.cloudcore.support import Edge, Kubernetes, until

LEASE = "kube-node-lease/lease/edge-1"


def here(message: Any) -> Any:
    """A recorded message, for the node of this test."""
    return json.loads(json.dumps(message).replace("edge1", "edge-1"))


async def replay(edge: Edge, operation: str, resource: str, at: int = 0, **changes: Any) -> Message:
    message = here(recorded("up", operation, resource, at))
    content = message["content"]
    if changes:
        content = {**content, **changes}
    route = message["route"]
    return await edge.answer(await edge.send(content=content, **route))


def check_shape(answer: Message, original: Any) -> None:
    """Envelope and outer content as upstream's."""
    original = here(original)
    ours = json.loads(json.dumps({"source": answer.route.source, "group": answer.route.group}))
    assert ours == {"source": original["route"]["source"], "group": original["route"]["group"]}
    assert answer.route.operation == original["route"]["operation"]
    assert answer.route.resource == original["route"]["resource"]
    assert answer.header.parent_msg_id
    assert bool(answer.header.resourceversion) is bool(original["header"].get("resourceversion"))
    content = json.loads(bytes(answer.content))
    assert type(content) is type(original["content"])
    if isinstance(content, dict) and "Object" in original["content"]:
        assert set(content) == set(original["content"])
        assert content["Err"] == original["content"]["Err"]


async def test_a_stock_edge_core_registers_and_lives(kube: Kubernetes, certs: Path) -> None:
    async with edge_cloud(kube, certs) as cloud, cloud.edge(ask=False) as edge:
        operation, content = said(await ask(edge, "query", LEASE))
        assert (operation, content["Object"]) == ("response", None)
        assert content["Err"]["ErrStatus"]["reason"] == "NotFound"
        assert content["Err"]["ErrStatus"]["code"] == 404

        answer = await replay(edge, "insert", "null/node/edge1")
        check_shape(answer, recorded("down", "response", "null/node/edge1"))
        stored = await kube.get(NODES, Key("", "edge-1"))
        assert stored["metadata"]["labels"]["node-role.kubernetes.io/edge"] == ""
        assert stored["metadata"]["annotations"]["cloudcore"] == "192.0.2.10"
        assert stored["metadata"]["uid"] == json.loads(bytes(answer.content))["Object"]["metadata"]["uid"]

        again = said(await replay(edge, "insert", "null/node/edge1"))[1]
        assert (again["Object"], again["Err"]["ErrStatus"]["reason"]) == (None, "AlreadyExists")

        check_shape(
            await replay(edge, "patch", "null/nodepatch/edge1"), recorded("down", "response", "null/nodepatch/edge1")
        )
        check_shape(
            await replay(edge, "patch", "null/nodepatch/edge1", 1),
            recorded("down", "response", "null/nodepatch/edge1", 1),
        )
        conditions = (await kube.get(NODES, Key("", "edge-1")))["status"]["conditions"]
        assert {c["type"]: c["lastHeartbeatTime"] for c in conditions}["Ready"] == "2026-11-22T22:25:30Z"

        lease: Any = here(recorded("up", "update", "kube-node-lease/lease/edge1"))["content"]
        lease["metadata"]["ownerReferences"][0]["uid"] = stored["metadata"]["uid"]
        made = await ask(edge, "insert", LEASE, lease)
        check_shape(made, recorded("down", "response", "kube-node-lease/lease/edge1"))
        first = said(made)[1]["Object"]
        renewed = await ask(edge, "update", LEASE, {**first, "spec": {**first["spec"], "leaseDurationSeconds": 50}})
        check_shape(renewed, recorded("down", "response", "kube-node-lease/lease/edge1", 1))
        assert (await kube.get(LEASES, Key("kube-node-lease", "edge-1")))["spec"]["leaseDurationSeconds"] == 50
        late = said(await ask(edge, "update", LEASE, first))[1]
        assert late["Err"]["ErrStatus"]["reason"] == "Conflict"
        check_shape(await ask(edge, "query", LEASE), recorded("down", "response", "kube-node-lease/lease/edge1"))

        update = {"metadata": {"name": "edge-1", "labels": {"hall": "3"}, "annotations": {"a": "b", "cloudcore": "x"}}}
        assert said(await ask(edge, "update", "null/node/edge-1", update)) == ("response", "OK")
        stored = await kube.get(NODES, Key("", "edge-1"))
        assert stored["metadata"]["labels"]["hall"] == "3"
        assert stored["metadata"]["annotations"]["a"] == "b"
        assert stored["metadata"]["annotations"]["cloudcore"] == "192.0.2.10"
        assert said(await ask(edge, "query", "null/node/edge-1"))[1]["kind"] == "Node"


async def test_pods_and_what_they_refer_to(kube: Kubernetes, certs: Path) -> None:
    made = await furnish(kube)
    async with edge_cloud(kube, certs) as cloud, cloud.edge(ask=False) as edge:
        for type_, name in (("configmap", "cm1"), ("secret", "s1")):
            answer = await ask(edge, "query", f"default/{type_}/{name}")
            check_shape(answer, recorded("down", "response", f"default/{type_}/{name}"))
            assert said(answer)[1]["data"] == made[f"{type_}/{name}"]["data"]
            assert said(answer)[1]["apiVersion"] == "v1"

        patch = {"metadata": {"uid": made["pod/p1"]["metadata"]["uid"]}, "status": {"phase": "Running"}}
        answer = await ask(edge, "patch", "default/podpatch/p1", text(patch))
        check_shape(answer, recorded("down", "response", "default/podpatch/p1"))
        assert (await kube.get(PODS, Key("default", "p1")))["status"]["phase"] == "Running"
        gone = said(await ask(edge, "patch", "default/podpatch/none", text(patch)))[1]
        assert gone["Err"]["ErrStatus"]["reason"] == "NotFound"

        status = {"UID": made["pod/p1"]["metadata"]["uid"], "Name": "p1", "Status": {"phase": "Failed"}}
        assert said(await ask(edge, "update", "default/podstatus/p1", status)) == ("response", "OK")
        assert (
            said(await ask(edge, "update", "default/podstatus", [{**status, "Status": {"phase": "Running"}}]))[1]
            == "OK"
        )
        assert (await kube.get(PODS, Key("default", "p1")))["status"]["phase"] == "Running"
        unknown = {"UID": "u-9", "Name": "p9", "Status": {}}
        assert said(await ask(edge, "update", "default/podstatus/p9", unknown))[1] == "OK"
        stub = await until(lambda: [m for m in edge.objects("p9") if m.route.operation == "delete"])
        assert json.loads(bytes(stub[0].content))["metadata"] == {"name": "p9", "namespace": "default", "uid": "u-9"}

        mirror = pod("static", volumes=[])
        mirror["spec"]["containers"][0].pop("env")
        mirror["metadata"]["annotations"] = {"kubernetes.io/config.mirror": "hash"}
        assert said(await ask(edge, "insert", "default/pod/static", mirror))[1]["Object"]["metadata"]["uid"]
        assert (
            said(await ask(edge, "patch", "default/podpatch/static", text({"status": {"phase": "Running"}})))[1]["Err"]
            is None
        )

        options = {"gracePeriodSeconds": 0, "preconditions": {"uid": made["pod/p1"]["metadata"]["uid"]}}
        answer = await ask(edge, "delete", "default/pod/p1", options)
        check_shape(answer, recorded("down", "response", "default/pod/p1"))
        assert said(await ask(edge, "delete", "default/pod/p1", options)) == ("response", "OK")
        uid = (await kube.get(PODS, Key("default", "static")))["metadata"]["uid"]
        assert said(await ask(edge, "delete", "default/pod/static", "another-uid"))[1] == "OK"
        assert await kube.get(PODS, Key("default", "static"))
        assert said(await ask(edge, "delete", "default/pod/static", uid))[1] == "OK"
        assert await is_gone(kube, "static")


async def is_gone(kube: Kubernetes, name: str) -> bool:
    try:
        await kube.get(PODS, Key("default", name))
    except NotFound:
        return True
    return False


async def test_volumes_tokens_certificates_and_events(kube: Kubernetes, certs: Path) -> None:
    await furnish(kube)
    claim = {"name": "data", "persistentVolumeClaim": {"claimName": "claim-1"}}
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "app", "namespace": "default"}}
    await kube.create(SERVICE_ACCOUNTS, account)
    user = await kube.create(PODS, pod("user", volumes=[claim], serviceAccountName="app"))
    for kind, name, namespace, spec in (
        (CLAIMS, "claim-1", "default", {"volumeName": "pv-1"}),
        (VOLUMES, "pv-1", "", {"claimRef": {"namespace": "default", "name": "claim-1"}}),
        (VOLUMES, "pv-2", "", {"claimRef": {"namespace": "default", "name": "claim-2"}}),
        (VOLUME_ATTACHMENTS, "va-1", "", {"nodeName": "edge-1"}),
        (VOLUME_ATTACHMENTS, "va-2", "", {"nodeName": "edge-2"}),
    ):
        metadata = {"name": name} | ({"namespace": namespace} if namespace else {})
        await kube.create(kind, {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata, "spec": spec})
    async with edge_cloud(kube, certs) as cloud, cloud.edge(ask=False) as edge:
        for resource in (
            "default/persistentvolumeclaim/claim-1",
            "null/persistentvolume/pv-1",
            "default/volumeattachment/va-1",
        ):
            answer = await ask(edge, "query", resource)
            assert answer.route.operation == "response", said(answer)
            assert (answer.route.resource, bool(answer.header.resourceversion)) == (resource, True)
        for resource in ("null/persistentvolume/pv-2", "default/volumeattachment/va-2"):
            assert said(await ask(edge, "query", resource))[0] == "error"

        bound = {"kind": "Pod", "apiVersion": "v1", "name": "user", "uid": user["metadata"]["uid"]}
        request = {"metadata": {}, "spec": {"audiences": ["x"], "expirationSeconds": 600, "boundObjectRef": bound}}
        operation, token = said(await ask(edge, "query", "default/serviceaccounttoken/app", request))
        assert operation == "response"
        claims = json.loads(base64.urlsafe_b64decode(token["status"]["token"].split(".")[1] + "=="))
        assert (claims["sub"], claims["aud"]) == ("system:serviceaccount:default:app", ["x"])
        assert claims["kubernetes.io"]["pod"]["uid"] == user["metadata"]["uid"]
        for wrong in ({**bound, "name": "p1"}, {**bound, "uid": "u"}, {**bound, "kind": "Secret"}, None):
            refused = {"spec": {**request["spec"], "boundObjectRef": wrong}}
            assert said(await ask(edge, "query", "default/serviceaccounttoken/app", refused))[0] == "error"
        assert cloud.refused("token") == 4

        csr = signing_request("edge-1")
        operation, content = said(await ask(edge, "insert", "default/certificatesigningrequest/", csr))
        assert (operation, content["Err"]) == ("response", None)
        name = content["Object"]["metadata"]["name"]
        assert (
            said(await ask(edge, "query", f"default/certificatesigningrequest/{name}"))[1]["kind"]
            == SIGNING_REQUESTS.kind
        )
        refusals = (
            signing_request("edge-2"),
            signing_request("edge-1", signer="kubernetes.io/legacy-unknown"),
            signing_request("edge-1", organization="system:masters"),
            {"spec": {"signerName": "kubernetes.io/kubelet-serving", "request": "bm8="}},
        )
        for wrong_request in refusals:
            assert said(await ask(edge, "insert", "default/certificatesigningrequest/c2", wrong_request))[0] == "error"
        others = {
            **signing_request("edge-2"),
            "apiVersion": SIGNING_REQUESTS.api_version,
            "kind": SIGNING_REQUESTS.kind,
        }
        await kube.create(SIGNING_REQUESTS, {**others, "metadata": {"name": "of-edge-2"}})
        assert said(await ask(edge, "query", "default/certificatesigningrequest/of-edge-2"))[0] == "error"

        operation, pem = said(await ask(edge, "query", "k8s/ca.crt", source="metamanager"))
        assert operation == "response"
        assert x509.load_pem_x509_certificate(pem.encode())

        event = {
            "metadata": {"name": "e1", "namespace": "default"},
            "involvedObject": {"kind": "Pod", "namespace": "default", "name": "p1"},
            "reason": "Pulled",
            "count": 1,
        }
        route: dict[str, Any] = {"source": "edged", "group": "meta", "resource": "default/event/e1"}
        await edge.send(operation="insert", content=event, **route)
        await edge.send(operation="update", content={**event, "count": 2}, **route)
        await edge.send(operation="patch", content={"event": event, "patchData": '{"count":3}'}, **route)
        await until(lambda: cloud.outcomes("event").get("served") == 3)
        assert (await kube.get(EVENTS, Key("default", "e1")))["count"] == 3
        assert not [m for m in edge.received if m.route.resource == "default/event/e1"]


def signing_request(
    node: str, *, signer: str = "kubernetes.io/kubelet-serving", organization: str = "system:nodes"
) -> dict[str, Any]:
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization),
            x509.NameAttribute(NameOID.COMMON_NAME, f"system:node:{node}"),
        ]
    )
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(name)
        .sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    )
    pem = csr.public_bytes(serialization.Encoding.PEM)
    return {
        "metadata": {"generateName": "csr-"},
        "spec": {"signerName": signer, "request": base64.b64encode(pem).decode()},
    }
