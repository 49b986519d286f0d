"""Generated from `proto/`; regenerate with `make proto`.

protobuf imports its implementation in Python whichever one it uses. Where it uses the one in C, which is wherever there
is a wheel, that is 1.5 MB of code in every process that nothing ever calls, so it is loaded when something does.
"""

import importlib.util
import sys
from types import ModuleType

from google.protobuf import internal
from google.protobuf.internal import api_implementation

_UNUSED = "python_message"


def _postpone(package: ModuleType, name: str) -> None:
    """Let a module be imported without being run; the first use of anything in it runs it."""
    full_name = f"{package.__name__}.{name}"
    spec = importlib.util.find_spec(full_name)
    if spec is None or spec.loader is None:
        return
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = sys.modules[full_name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    setattr(package, name, module)  # else the import statement looks at the module, which is use enough


if api_implementation.Type() == "upb" and f"{internal.__name__}.{_UNUSED}" not in sys.modules:
    _postpone(internal, _UNUSED)
