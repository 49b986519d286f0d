"""Wrong use is said before anybody is asked."""

import pytest
from click.testing import CliRunner

from kubetwin.plugin import main


@pytest.mark.parametrize(
    ("arguments", "says"),
    (
        (("get", "a/b/c"), "'a/b/c' is not the name of a device"),
        (("get", "boiler-1", "-A"), "not both"),
        (("get", "plant/boiler-1", "-n", "dev"), "plant/boiler-1 is not in namespace 'dev', which -n names"),
        (("get", "-n", "Not A Name"), "is not the name of a namespace"),
        (("why", "a/b/c"), "'a/b/c' is not the name of a device"),
        (("why", "plant/x", "-n", "dev"), "plant/x is not in namespace 'dev'"),
        (("why", "x", "--no-api", "--no-edge"), "there is nobody to ask"),
    ),
)
def test_it_is_a_sentence(monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], says: str) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("kubetwin.kubectl.kubectl_path", lambda: "kubectl")
    ran = CliRunner().invoke(main, arguments)
    assert (ran.exit_code, says in ran.stderr, ran.stdout) == (2, True, "")
