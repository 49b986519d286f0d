"""Structural schemas of Kubernetes: pruning, defaulting and validation of objects, with errors in Kubernetes' words.

    schema = compile_schema(crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
    obj, unknown = schema.prune(obj)
    obj = schema.default(obj)
    problems = schema.validate(obj, old)

Pure: no I/O and no event loop. A CEL rule takes some 40 µs a value, so one on the items of a long list takes a while.
"""

from kubetwin.apiserver.schema.errors import FieldError, Reason, SchemaError
from kubetwin.apiserver.schema.structural import StructuralSchema, compile_schema

__all__ = ["FieldError", "Reason", "SchemaError", "StructuralSchema", "compile_schema"]
