#!/usr/bin/env bash
# Builds the gateway's image with podman: tests/deploy/build_image.sh [TAG]
# Takes from the environment, each only if it is set:
#   PYTHON_IMAGE     the base image; without it one is made by debootstrap (Debian 13, CPython 3.13) and kept in podman's store
#   PIP_CERT         a CA file for the build alone
#   PIP_CONFIG_FILE  a pip configuration for the build alone
set -euo pipefail
cd "$(dirname "$0")/../.."
tag=${1:-localhost/apprentice:test}
suite=trixie
export PODMAN_IGNORE_CGROUPSV1_WARNING=1
podman=(podman --runtime runc)

for program in podman runc debootstrap; do
  command -v "$program" >/dev/null || { echo "$program was not found: apt-get install podman runc debootstrap" >&2; exit 2; }
done

make_base() {
  local rootfs=$PWD/var/image-base/rootfs
  rm -rf "$rootfs"
  mkdir -p "$rootfs"
  debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates "$suite" "$rootfs" \
    >var/image-base/debootstrap.log 2>&1 || { tail -n 20 var/image-base/debootstrap.log >&2; return 1; }
  tar --one-file-system -C "$rootfs" -cf - . | "${podman[@]}" import --quiet - "$PYTHON_IMAGE"
  rm -rf "$rootfs"
}

if [ -z "${PYTHON_IMAGE:-}" ]; then
  PYTHON_IMAGE=localhost/apprentice-base:$suite
  "${podman[@]}" image exists "$PYTHON_IMAGE" || { echo "making the base image $PYTHON_IMAGE (about a minute)"; make_base; }
fi

secrets=()
if [ -n "${PIP_CERT:-}" ]; then secrets+=(--secret "id=ca,src=$PIP_CERT"); fi
if [ -n "${PIP_CONFIG_FILE:-}" ]; then secrets+=(--secret "id=pip.conf,src=$PIP_CONFIG_FILE"); fi

"${podman[@]}" build --format docker --network host \
  --ulimit "nofile=$(ulimit -Hn):$(ulimit -Hn)" --ulimit "nproc=$(ulimit -Hu):$(ulimit -Hu)" \
  --build-arg "PYTHON_IMAGE=$PYTHON_IMAGE" "${secrets[@]}" --tag "$tag" .
