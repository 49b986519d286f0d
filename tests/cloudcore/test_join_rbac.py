"""The roles in examples/cluster grant what the code asks of the API."""

import ast
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import yaml

import cloudcore
from cloudcore.kube import Kind

ROLES = Path(__file__).parents[2] / "examples" / "cluster" / "cloudcore-rbac.yaml"
RECORDS = ("objectsyncs", "clusterobjectsyncs")
VERBS = {"get": "get", "create": "create", "replace": "update", "patch": "patch", "delete": "delete"}


# What is asked for by calls that do not name the kind. A record is of either kind; the rest nodes ask for.
UNNAMED = {
    *(("reliablesyncs.kubeedge.io", kind, v) for kind in RECORDS for v in ("get", "create", "delete")),
    *(("reliablesyncs.kubeedge.io", f"{kind}/status", "patch") for kind in RECORDS),
    *(("", kind, "get") for kind in ("configmaps", "secrets", "persistentvolumeclaims")),
    *(("", "secrets", verb) for verb in ("list", "watch")),
    ("", "serviceaccounts/token", "create"),
}


def granted() -> set[tuple[str, str, str]]:
    """(API group, resource, verb) of all roles. The namespace, which cloudcore makes for an administrator, is there
    before they are, as they lie in it."""
    found = {("", "namespaces", "create")}
    for document in yaml.safe_load_all(ROLES.read_text()):
        for rule in document.get("rules", ()):
            found |= {(g, r, v) for g in rule["apiGroups"] for r in rule["resources"] for v in rule["verbs"]}
    return found


def modules() -> Iterator[ModuleType]:
    for found in pkgutil.walk_packages(cloudcore.__path__, "cloudcore."):
        if not found.name.startswith(("cloudcore.kube", "cloudcore.__main__")):
            yield importlib.import_module(found.name)


def asked(module: ModuleType) -> Iterator[tuple[str, str, str]]:
    """What calls with the name of a kind as argument come to: of the client, and of informers."""
    for call in ast.walk(ast.parse(Path(str(module.__file__)).read_text())):
        if not isinstance(call, ast.Call):
            continue
        kinds = [getattr(module, arg.id, None) for arg in call.args[:2] if isinstance(arg, ast.Name)]
        kind = next((kind for kind in kinds if isinstance(kind, Kind)), None)
        if kind is None:
            continue
        below = [word.value.value for word in call.keywords if word.arg == "subresource" and _is_text(word.value)]  # type: ignore[attr-defined]
        resource = "/".join([kind.plural, *below])
        if isinstance(call.func, ast.Attribute) and call.func.attr in VERBS:
            yield kind.group, resource, VERBS[call.func.attr]
        elif isinstance(call.func, ast.Name) and call.func.id == "Informer":
            yield from ((kind.group, resource, verb) for verb in ("list", "watch"))


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def test_the_roles_grant_what_is_asked() -> None:
    wanted = {one: module.__name__ for module in modules() for one in asked(module)}
    assert len(wanted) > 20, "the calls are found"
    missing = {one: name for one, name in wanted.items() if one not in granted()}
    assert not missing


def test_the_roles_grant_no_more_than_is_asked() -> None:
    wanted = {one for module in modules() for one in asked(module)} | UNNAMED
    assert sorted(granted() - wanted) == []
    assert sorted(UNNAMED - granted()) == []


def test_every_role_is_bound_and_deleting_the_file_leaves_the_ca() -> None:
    documents = list(yaml.safe_load_all(ROLES.read_text()))
    assert "Namespace" not in [document["kind"] for document in documents]
    made, bound = ([d["metadata"] for d in documents if d["kind"].endswith(end)] for end in ("Role", "RoleBinding"))
    assert made == bound


def test_every_kind_is_in_the_roles() -> None:
    kinds = {value for module in modules() for value in vars(module).values() if isinstance(value, Kind)}
    resources = {(group, resource.partition("/")[0]) for group, resource, _ in granted()}
    assert {(kind.group, kind.plural) for kind in kinds} <= resources
