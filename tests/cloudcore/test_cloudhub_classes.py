"""How messages are delivered: the channel contract's table 4.2, by path element."""

import pytest

from cloudcore.cloudhub.classes import Delivery, classify
from cloudcore.cloudhub.upgrade import MAX_ID, node_of_upgrade, wrong_with
from cloudedge import Message, new_message
from cloudedge.listening import Refusal

ONCE, KEPT, ANSWER, OBJECT = Delivery.ONCE, Delivery.KEPT, Delivery.ANSWER, Delivery.OBJECT


def message(
    resource: str,
    operation: str = "update",
    *,
    source: str = "edgecontroller",
    group: str = "resource",
    parent: str = "",
    content: object = None,
) -> Message:
    return new_message(
        source=source, group=group, operation=operation, resource=resource, parent=parent, content=content
    )


@pytest.mark.parametrize(
    ("sent", "delivery"),
    (
        (message("default/device/d", source="devicecontroller"), OBJECT),
        (message("default/device/d", "delete", source="devicecontroller"), OBJECT),
        (message("null/node/edge-1"), OBJECT),
        (message("default/pod/p", "insert"), OBJECT),
        (message("default/serviceaccountaccess/a", source="policycontroller"), OBJECT),
        (message("membership", source="devicecontroller", group="twin"), ONCE),
        (message("membership/detail", source="devicecontroller", group="twin"), ONCE),
        (message("twin", "response", source="devicecontroller", group="twin", parent="p", content="OK"), ONCE),
        (message("default/podlist"), ONCE),
        (message("default/serviceaccounttoken/t", "response", parent="p", content={}), ONCE),
        (message("k8s/ca.crt", "response", source="cloudhub", parent="p", content="pem"), ONCE),
        (message("device/default/d/twin/cloud_updated", source="devicecontroller"), ONCE),
        (message("default/volume/v", "createvolume", source="cloudhub"), KEPT),
        (message("ignore/Application/ignore", "applicationResponse", source="dynamiccontroller"), ONCE),
        (message("default/topic", "publish", source="router_eventbus", group="user"), KEPT),
        (message("upgrade/t/node/n", "upgrade", source="taskmanager", group="taskmanager"), KEPT),
        (message("default/configmap/c", "response", parent="p", content={"kind": "ConfigMap"}), ANSWER),
        (message("default/configmap/c", "error", parent="p", content="no such"), ONCE),
        (message("default/pod/p", "response", parent="p", content="OK"), ONCE),
        (message("default/pod/p", "response", parent="p", content={"Object": None}), ONCE),
        (message("null/node/n", "response", parent="p", content={"Object": None}), ONCE),
        (message("null/nodepatch/n", "response", parent="p", content={"Object": None}), ONCE),
        (message("default/podpatch/n", "response", parent="p", content={"Object": None}), ONCE),
        (message("kube-node-lease/lease/n", "response", parent="p", content={"Object": None}), ONCE),
        (message("default/certificatesigningrequest/n", "response", parent="p", content={}), ONCE),
        # Upstream takes these for the class that is sent once (contract 8.1 #4).
        (message("default/pod/membership"), OBJECT),
        (message("podlist/configmap/membership-x"), OBJECT),
        (message("membership-ns/device/podlist", source="devicecontroller"), OBJECT),
    ),
)
def test_delivery(sent: Message, delivery: Delivery) -> None:
    assert classify(sent) is delivery


@pytest.mark.parametrize(
    ("resource", "wrong"),
    (
        ("default/configmap/c", ""),
        ("node/configmap/c", ""),  # a namespace called node
        ("membership/detail", ""),
        ("node/edge-1/default/pod/p", ""),
        ("node/edge-2/default/pod/p", "resource of another node"),
        ("../edge-2/pod/p", "resource"),
        ("default/./p", "resource"),
        ("default/pod/..", "resource"),
        ("default/pod/a\r\nb", "resource"),
        ("default/pod/\x00", "resource"),
        ("a/" * 600, "resource"),
    ),
)
def test_resources_that_leave_their_node(resource: str, wrong: str) -> None:
    assert wrong_with(message(resource, source="edged", group="meta"), "edge-1") == wrong


def test_topics_and_urls_are_no_paths() -> None:
    assert not wrong_with(message("http://127.0.0.1/../x", source="servicebus", group="user"), "edge-1")


def test_ids_that_are_too_long() -> None:
    sent = message("default/pod/p", parent="x" * (MAX_ID + 1))
    assert wrong_with(sent, "edge-1") == "message id"


GOOD = {"node_id": "edge-1", "ConnectionUse": "msg", "Host": "cloud:10000"}


@pytest.mark.parametrize(
    ("headers", "status"),
    (
        ({**GOOD, "node_id": "a b"}, 400),
        ({**GOOD, "node_id": "\udcff"}, 400),
        ({**GOOD, "node_id": "edge-1\r\nnode_id: edge-2"}, 400),
        ({**GOOD, "node_id": "x" * 10_000}, 400),
        ({k: v for k, v in GOOD.items() if k != "ConnectionUse"}, 400),
        ({**GOOD, "ConnectionUse": "str"}, 400),
        ({**GOOD, "Origin": "https://elsewhere:10000"}, 403),
        ({**GOOD, "Origin": "null"}, 403),
        ({**GOOD, "Origin": "cloud:10000"}, 403),
        ({"node_id": "edge-1", "ConnectionUse": "msg", "Origin": "https://"}, 403),
    ),
)
def test_upgrade_requests_that_are_refused(headers: dict[str, str], status: int) -> None:
    with pytest.raises(Refusal) as refused:
        node_of_upgrade(headers)
    assert refused.value.status == status
    assert len(str(refused.value)) < 200
    assert str(refused.value).isprintable()


def test_upgrade_requests_that_are_taken() -> None:
    assert node_of_upgrade(GOOD) == "edge-1"
    assert node_of_upgrade({**GOOD, "Origin": "https://CLOUD:10000"}) == "edge-1"
