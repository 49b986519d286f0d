"""`kubetwin mapper new` and `update`: what is made, what an update leaves alone, merges, and refuses."""

from __future__ import annotations

import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from dmi.errors import ConfigError
from kubetwin import mapper_project
from kubetwin.cli import main
from kubetwin.mapper_project import BASE, Answers, Change, create, update
from mappers.sdk.config import load_config

TEMPLATE = Path(mapper_project.__file__).parent.parent / "mappers" / "template"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["mapper", *arguments])


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return create(Answers("acme-meter"), tmp_path)


@pytest.fixture
def newer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the scaffold that `update` takes for the current one; tests change it."""
    package = tmp_path / "package"
    shutil.copytree(TEMPLATE, package / "template")
    monkeypatch.setattr(mapper_project, "files", lambda _: package)
    return package / "template" / "project"


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_everything_is_named_after_the_project(project: Path) -> None:
    assert "class AcmeMeterDriver(" in (project / "acme_meter" / "driver.py").read_text()
    assert '"acme-meter" = "acme_meter:AcmeMeterDriver"' in (project / "pyproject.toml").read_text()
    files = [p for p in project.rglob("*") if p.is_file()]
    assert not [p for p in files if "{" in p.name or p.suffix == ".jinja"]
    for file in files:
        if file.name != BASE:
            assert "{%" not in file.read_text(), file
            assert str(TEMPLATE.parent.parent) not in file.read_text(), file


def test_protocol_and_name_may_differ(tmp_path: Path) -> None:
    project = create(Answers("acme-meter", "AcmeLine/2".replace("/", "-")), tmp_path)
    device = yaml.safe_load((project / "manifests" / "device.yaml").read_text())
    assert device["metadata"]["name"] == "acme-meter-1"
    assert device["spec"]["protocol"]["protocolName"] == "AcmeLine-2"
    assert 'protocol = "AcmeLine-2"' in (project / "acme_meter" / "driver.py").read_text()


def test_the_deployment_puts_the_mapper_beside_its_edge_core(project: Path) -> None:
    config_map, deployment = yaml.safe_load_all((project / "deploy" / "mapper.yaml").read_text())
    settings = yaml.safe_load(config_map["data"]["config.yaml"])
    pod = deployment["spec"]["template"]["spec"]
    mounts = {m["name"]: m["mountPath"] for m in pod["containers"][0]["volumeMounts"]}
    host = next(v["hostPath"]["path"] for v in pod["volumes"] if v["name"] == "sockets")
    assert pod["nodeName"] == yaml.safe_load((project / "manifests" / "device.yaml").read_text())["spec"]["nodeName"]
    # The edge core dials the mapper under the path that the mapper gives, so both see one path.
    assert host == mounts["sockets"]
    assert Path(settings["grpc_server"]["socket_path"]).is_relative_to(host)
    assert Path(settings["common"]["edgecore_sock"]).is_relative_to(host)


@pytest.mark.parametrize("name", ("Acme", "acme_meter", "1acme", "-acme", "acme-", "a--b", "", "a/b", "..", "x" * 41))
def test_names_that_cannot_be_are_refused_with_what_is_allowed(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="lower-case letters, digits and single hyphens"):
        create(Answers(name), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ("class", "json", "mappers", "kubetwin", "msgspec"))
def test_names_that_python_has_already_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"acme-{name}"):
        create(Answers(name), tmp_path)


@pytest.mark.parametrize("protocol", ("two words", 'quo"te', "a=b", "-x", "line\nbreak", "x" * 64))
def test_protocols_that_cannot_be_entry_points_are_refused(tmp_path: Path, protocol: str) -> None:
    with pytest.raises(ConfigError, match="letters, digits, dots"):
        create(Answers("acme", protocol), tmp_path)


def test_a_protocol_that_kubetwin_has_a_driver_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="kubetwin has a driver of that name"):
        create(Answers("modbus"), tmp_path)
    assert create(Answers("modbus", "acme-modbus"), tmp_path).is_dir()


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "acme").mkdir()
    assert run("new", "acme", "--dir", str(tmp_path)).exit_code == 0  # an empty one is fine
    before = (tmp_path / "acme" / "README.md").stat().st_mtime_ns
    result = run("new", "acme", "--dir", str(tmp_path))
    assert result.exit_code == 1
    assert "exists and is not empty" in result.output
    assert (tmp_path / "acme" / "README.md").stat().st_mtime_ns == before


def test_without_news_an_update_changes_nothing(project: Path) -> None:
    before = {p: p.read_bytes() for p in project.rglob("*") if p.is_file()}
    assert update(project) == []
    assert {p: p.read_bytes() for p in project.rglob("*") if p.is_file()} == before


def test_an_update_takes_over_what_is_new(project: Path, newer: Path) -> None:
    replace(newer / "Dockerfile.jinja", "python:3.13-slim", "python:3.14-slim")
    (newer / "NOTES.md.jinja").write_text("About {{ name }}.\n")
    (newer / ".dockerignore.jinja").unlink()
    assert update(project) == [
        Change(".dockerignore", "removed"),
        Change("Dockerfile", "updated"),
        Change("NOTES.md", "added"),
    ]
    assert "python:3.14-slim" in (project / "Dockerfile").read_text()
    assert (project / "NOTES.md").read_text() == "About acme-meter.\n"
    assert not (project / ".dockerignore").exists()
    assert update(project) == []


def test_the_authors_files_survive_whatever_the_scaffold_does(project: Path, newer: Path) -> None:
    mine = {}
    for name in ("config.py", "driver.py", "simulator.py"):
        (newer / "{{package}}" / f"{name}.jinja").write_text("# something else\n")
        mine[project / "acme_meter" / name] = f"# my own {name}\n"
    (newer / "manifests" / "device.yaml.jinja").unlink()
    mine[project / "manifests" / "device.yaml"] = "# my own device\n"
    for file, text in mine.items():
        file.write_text(text)
    assert update(project) == []
    assert {file: file.read_text() for file in mine} == mine


def test_both_changes_of_a_file_are_kept(project: Path, newer: Path) -> None:
    replace(project / "pyproject.toml", '["kubetwin[mapper]"]', '["kubetwin[mapper]", "pyserial"]')
    replace(newer / "pyproject.toml.jinja", '"ruff>=0.15"', '"ruff>=0.99"')
    assert update(project) == [Change("pyproject.toml", "merged")]
    text = (project / "pyproject.toml").read_text()
    assert "pyserial" in text
    assert "ruff>=0.99" in text


def test_a_conflict_is_shown_where_it_is(project: Path, newer: Path) -> None:
    replace(project / "Dockerfile", '"/config/config.yaml"', '"/mine.yaml"')
    replace(newer / "Dockerfile.jinja", '"/config/config.yaml"', '"/theirs.yaml"')
    result = run("update", str(project))
    assert result.exit_code == 1
    assert "conflict  Dockerfile" in result.output
    assert "resolve what is between <<<<<<< and >>>>>>> in Dockerfile" in result.output
    text = (project / "Dockerfile").read_text()
    assert "<<<<<<< yours" in text
    assert '"/mine.yaml"' in text
    assert '"/theirs.yaml"' in text
    assert run("update", str(project)).output == "up to date\n"  # what is resolved now stays resolved


def test_what_was_deleted_stays_deleted_and_what_was_changed_is_not_removed(project: Path, newer: Path) -> None:
    (project / ".dockerignore").unlink()
    (newer / ".dockerignore.jinja").write_text("more\n")
    (project / "README.md").write_text("my own words\n")
    (newer / "README.md.jinja").unlink()
    assert update(project) == [Change(".dockerignore", "kept"), Change("README.md", "kept")]
    assert not (project / ".dockerignore").exists()
    assert (project / "README.md").read_text() == "my own words\n"


def test_uncommitted_changes_are_refused_unless_forced(project: Path) -> None:
    def git(*arguments: str) -> None:
        author = ("-c", "user.name=A", "-c", "user.email=a@b")
        subprocess.run(["git", "-C", str(project), *author, *arguments], check=True, capture_output=True)

    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "start")
    assert update(project) == []
    (project / "README.md").write_text("changed\n")
    with pytest.raises(ConfigError, match="not committed"):
        update(project)
    assert update(project, force=True) == []


def test_only_generated_projects_are_updated(tmp_path: Path) -> None:
    result = run("update", str(tmp_path))
    assert result.exit_code == 1
    assert "only a project made by `kubetwin mapper new` can be updated" in result.output


@pytest.mark.parametrize("member", ("../outside", "/etc/outside", "a/../../outside"))
def test_a_base_that_points_outside_the_project_is_refused(project: Path, member: str) -> None:
    with zipfile.ZipFile(project / BASE, "w") as archive:
        archive.writestr(member, "x")
    with pytest.raises(ConfigError, match="outside the project"):
        update(project)


def test_a_base_that_is_no_archive_is_refused(project: Path) -> None:
    (project / BASE).write_bytes(b"not a zip")
    with pytest.raises(ConfigError, match="cannot be read"):
        update(project)


def test_a_base_that_declares_too_much_is_not_unpacked(project: Path) -> None:
    with zipfile.ZipFile(project / BASE, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("big", b"\0" * (mapper_project.MAX_BASE_BYTES + 1))
    with pytest.raises(ConfigError, match="larger than any scaffold"):
        update(project)


def test_the_settings_of_the_mapper_are_all_known(
    project: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    deployed = tmp_path / "deployed.yaml"
    config_map = next(yaml.safe_load_all((project / "deploy" / "mapper.yaml").read_text()))
    deployed.write_text(config_map["data"]["config.yaml"])
    for file in (project / "config.yaml", deployed):
        config = load_config(file)
        assert config.common.protocol == "acme-meter"
    assert caplog.text == ""  # an unknown key would be named


def test_the_workflow_does_what_the_readme_says(project: Path) -> None:
    jobs = yaml.safe_load((project / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    steps = jobs["test"]["steps"]
    assert steps[1]["with"]["python-version"] == "${{ matrix.python }}"
    readme = (project / "README.md").read_text()
    for command in ("pip install -e .[test]", "pytest", "kubetwin mapper check manifests"):
        assert command in [step.get("run") for step in steps]
        assert f"\n{command} " in readme
