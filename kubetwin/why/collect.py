"""Gathers the evidence: the API through kubectl, the node through a question and, where it runs, through its socket."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from cloudedge.facts import DeviceFacts
from cloudedge.queries import ANSWER_TIMEOUT_S
from dmi import ConfigError, merge_model
from dmi.crd import device_from_crd, model_from_crd
from kubetwin.kubectl import ApiAway, KindMissing, Kubectl, KubectlError, KubectlMissing, ObjectMissing
from kubetwin.lenient import text
from kubetwin.twin.asking import NoAnswer, ask, new_query
from kubetwin.twin.options import Target
from kubetwin.why.ends import Ends
from kubetwin.why.evidence import ApiEnd, CloudEnd, EdgeEnd, Evidence, Json
from kubetwin.why.local import clock_ahead_s, read_edge
from kubetwin.why.seen import read_status
from kubetwin.why.steps import Verdict
from kubetwin.why.walk import walk

__all__ = ["find_out"]

logger = logging.getLogger(__name__)

SECOND_LOOK_S: Final = 4.0
"""How long what may be over in a moment gets for that, before it counts as broken."""
_BETWEEN_LOOKS_S: Final = 1.0
PATIENCE_S: Final = ANSWER_TIMEOUT_S + 2.0
"""CloudCore answers in any case within the one; the other is for the API."""
STOCK_PATIENCE_S: Final = 3.0
"""For a CloudCore that left no trace of being ours."""


async def find_out(ends: Ends, namespace: str, name: str) -> Verdict:
    """Look, and look again while what is broken may be over in a moment."""
    deadline = time.monotonic() + SECOND_LOOK_S
    while True:
        verdict = walk(await _collect(ends, namespace, name))
        first = next((s for s in verdict.steps if s.state == "broken"), None)
        if first is None or not first.passing or time.monotonic() > deadline:
            return verdict
        await asyncio.sleep(_BETWEEN_LOOKS_S)


async def _collect(ends: Ends, namespace: str, name: str) -> Evidence:
    edge = EdgeEnd(absent="edge core was not to be asked")
    if ends.ask_edge:
        edge = await read_edge(ends.edge, namespace, name)
    api, cloud = await _read_cloud(ends.kubectl, namespace, name)
    return Evidence(
        namespace=namespace,
        name=name,
        now_ms=time.time_ns() // 1_000_000,
        api=api,
        cloud=cloud,
        edge=edge,
        driver_errors=_driver_errors(api.device, api.model),
    )


async def _read_cloud(kubectl: Kubectl | None, namespace: str, name: str) -> tuple[ApiEnd, CloudEnd]:
    if kubectl is None:
        return ApiEnd(absent="the Kubernetes API was not to be asked"), CloudEnd(absent="no API")
    server = await _server(kubectl)
    api = ApiEnd(server=server)
    try:
        api = msgspec.structs.replace(api, device=await kubectl.get("devices", namespace, name))
    except ObjectMissing:
        return api, CloudEnd(absent="there is no Device to ask about")
    except KindMissing:
        return _without(api, "devices"), CloudEnd(absent="the cluster knows no Devices")
    except KubectlMissing as error:
        return ApiEnd(absent=str(error)), CloudEnd(absent=str(error))
    except KubectlError as error:
        if isinstance(error, ApiAway) and not server:
            return ApiEnd(absent="kubectl has no cluster configured here"), CloudEnd(absent="no API")
        return msgspec.structs.replace(api, trouble=str(error)), CloudEnd(absent="the API was not reached")
    api = await _read_model(kubectl, api, namespace)
    try:
        status: Json = await kubectl.get("devicestatuses", namespace, name)
    except ObjectMissing:
        return api, CloudEnd(absent="there is no DeviceStatus to put a question into")
    except KindMissing:
        return _without(api, "devicestatuses"), CloudEnd(absent="the cluster knows no DeviceStatuses")
    except KubectlError as error:
        return msgspec.structs.replace(api, status_trouble=str(error)), CloudEnd(absent=str(error))
    status, cloud = await _ask(kubectl, namespace, name, status)
    return msgspec.structs.replace(api, status=status), cloud


def _without(api: ApiEnd, plural: str) -> ApiEnd:
    return msgspec.structs.replace(api, kinds_missing=api.kinds_missing | {plural})


async def _server(kubectl: Kubectl) -> str:
    """The address of the cluster; empty: none is configured."""
    try:
        text = await kubectl.run("config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}")
    except KubectlError:
        return ""
    return text.strip()


async def _read_model(kubectl: Kubectl, api: ApiEnd, namespace: str) -> ApiEnd:
    name = text(api.device or {}, "spec", "deviceModelRef", "name")
    if not name:
        return api
    try:
        return msgspec.structs.replace(api, model=await kubectl.get("devicemodels", namespace, name))
    except ObjectMissing:
        return api
    except KindMissing:
        return _without(api, "devicemodels")
    except KubectlError as error:
        return msgspec.structs.replace(api, model_trouble=str(error))


async def _ask(kubectl: Kubectl, namespace: str, name: str, status: Json) -> tuple[Json, CloudEnd]:
    """The answer, and the DeviceStatus as it was read after that."""
    cloud = await _question(kubectl, Target(namespace, name), ours=read_status(status).ours)
    try:
        return await kubectl.get("devicestatuses", namespace, name), cloud
    except KubectlError:
        return status, cloud


async def _question(kubectl: Kubectl, device: Target, *, ours: bool) -> CloudEnd:
    """`ours`: the DeviceStatus was written by a CloudCore that answers."""
    patience_s = PATIENCE_S if ours else STOCK_PATIENCE_S
    sent_s = time.time()
    try:
        answer = await ask(kubectl, device, new_query(ask="path"), timeout_s=patience_s)
    except NoAnswer:
        return CloudEnd(silent_s=patience_s)
    except KubectlError as error:
        return CloudEnd(absent=f"a question could not be put into the DeviceStatus: {error}")
    if answer.error:
        return CloudEnd(error=answer.error, reason=answer.reason)
    try:
        facts = msgspec.json.decode(answer.result, type=DeviceFacts)
    except msgspec.MsgspecError as error:
        return CloudEnd(error=f"the answer is not what was asked for: {error}")
    return CloudEnd(facts=facts, clock_ahead_s=clock_ahead_s(facts.now_ms, sent_s, time.time()))


def _driver_errors(device_obj: Mapping[str, Any] | None, model_obj: Mapping[str, Any] | None) -> tuple[str, ...]:
    """What the driver of the device's protocol, if it is installed here, cannot make sense of."""
    if device_obj is None or model_obj is None:
        return ()
    try:
        from mappers.sdk.declaration import declare
        from mappers.sdk.options import find_driver

        device, model = device_from_crd(device_obj), model_from_crd(model_obj)
        return tuple(declare(find_driver(device.protocol), merge_model(device, model), model).errors())
    except (ConfigError, ImportError):
        return ()  # what is wrong with the declaration is said elsewhere; without the driver there is nothing to say
    except Exception:  # a driver is anybody's code
        logger.debug("driver of %s", device_obj, exc_info=True)
        return ()
