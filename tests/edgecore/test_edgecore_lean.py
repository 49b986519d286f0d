"""What a running edge core does without is not in its memory, and is there for whoever asks for it."""

import subprocess
import sys


def _run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_edge_core_runs_without_what_libraries_hardly_use() -> None:
    loaded = _run(
        "import sys\n"
        "from edgecore.lean import lean_imports\n"
        "with lean_imports():\n"
        "    import edgecore.app, edgecore.options, grpc.aio, msgspec\n"
        "print(*sys.modules)"
    ).split()
    assert {"grpc.aio", "msgspec"}.issubset(loaded)
    assert not {
        "typing_extensions",
        "platform",
        "ipaddress",
        "aiohttp",
        "click",
        "yaml",
        "cryptography",
        "h11",
    }.intersection(loaded)


def test_what_a_stand_in_does_not_have_comes_from_the_real_module() -> None:
    _run(
        "import sys\n"
        "from edgecore.lean import lean_imports\n"
        "with lean_imports():\n"
        "    from typing_extensions import Self, ReadOnly\n"
        "import typing, typing_extensions\n"
        "assert Self is typing.Self\n"
        "assert ReadOnly is typing_extensions.ReadOnly\n"
        "with lean_imports():\n"
        "    import platform, ipaddress\n"
        "assert str(ipaddress.ip_address('::1')) == '::1' and platform.machine() and platform.system() == 'Linux'\n"
        "assert 'ipaddress' in sys.modules and 'platform' in sys.modules\n"
        "assert typing_extensions.__file__ and typing_extensions.TypedDict\n"
    )
