"""What is postponed is not in memory, and is there when somebody asks for it."""

import subprocess
import sys


def _run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_channel_loads_neither_proxies_nor_compressions() -> None:
    loaded = _run("import sys, cloudedge.connection; print(*sys.modules)").split()
    assert {"picows", "tempfile", "shutil"}.issubset(loaded)
    assert not {"python_socks.async_.asyncio", "lzma", "_lzma", "bz2", "_bz2"}.intersection(loaded)


def test_they_are_there_for_whoever_asks_later() -> None:
    _run(
        "import cloudedge.connection, shutil, tempfile, os\n"
        "with tempfile.TemporaryDirectory() as name:\n"
        "    os.mkdir(name + '/a')\n"
        "    for kind in ('bztar', 'xztar'):\n"
        "        shutil.unpack_archive(shutil.make_archive(name + '/b', kind, name + '/a'), name + '/c')\n"
    )


def test_a_proxy_is_made_all_the_same() -> None:
    code = "import cloudedge.connection, picows.proxy as p; print(type(p.Proxy.from_url('socks5://127.0.0.1:1')))"
    assert "python_socks" in _run(code)
