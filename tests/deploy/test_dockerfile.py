import re

from tests.deploy.cluster import ROOT, run, tool

DOCKERFILE = (ROOT / "Dockerfile").read_text()
FINAL_STAGE = DOCKERFILE.rsplit("\nFROM ", 1)[1]


def test_the_dockerfile_is_clean_to_hadolint() -> None:
    run(tool("hadolint"), "--config", ".hadolint.yaml", "Dockerfile", seconds_max=150)


def test_the_image_is_built_on_any_python() -> None:
    assert DOCKERFILE.startswith("ARG PYTHON_IMAGE=python:3.12-slim\n")
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)) == {"${PYTHON_IMAGE}"}


def test_the_image_installs_locked_packages_and_nothing_else() -> None:
    for install in re.findall(r"pip (?:--python \S+ )?install.*", DOCKERFILE):
        assert "--require-hashes" in install or "--no-index --no-deps" in install, install


def test_the_final_stage_installs_nothing_and_runs_as_a_number() -> None:
    assert not re.search(r"\b(pip|apt-get|apk)\b", FINAL_STAGE)
    (user,) = re.findall(r"^USER (\d+):\d+$", FINAL_STAGE, re.MULTILINE)
    assert int(user) > 0


def test_the_build_sees_only_what_it_copies() -> None:
    ignore = (ROOT / ".dockerignore").read_text().split()
    assert ignore[0] == "*"
    copied = {
        path for line in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE) for path in line.split()
    }
    assert {line.removeprefix("!") for line in ignore if line.startswith("!")} == copied
