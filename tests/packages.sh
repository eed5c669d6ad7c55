#!/usr/bin/env bash
# Installs what the tests use and this machine lacks: tests/packages.sh test|image … (targets of tests/debian-packages.txt).
# It installs as root on Debian. Where something stays missing it says so and exits with 1: those tests are left out.
set -euo pipefail
cd "$(dirname "$0")/.."

is_debian() { [ -e /etc/debian_version ] && command -v apt-get >/dev/null && command -v dpkg-query >/dev/null; }

# A package without programs can be looked for on Debian alone.
is_there() {
  local package=$1 programs=$2 program
  if [ "$programs" = - ]; then
    ! is_debian || dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed
    return
  fi
  for program in ${programs//,/ }; do command -v "$program" >/dev/null || return 1; done
}

# A package's own service must not start: the tests start theirs, on ports that are free.
without_services() (
  policy=/usr/sbin/policy-rc.d
  if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
  fi
  export DEBIAN_FRONTEND=noninteractive
  "$@"
)

missing=()
while read -r package programs target; do
  case $package in '' | '#'*) continue ;; esac
  [[ " $* " == *" $target "* ]] || continue
  is_there "$package" "$programs" || missing+=("$package")
done <tests/debian-packages.txt

# Debian's own Python makes virtual environments with this package only.
if [ ! -x .venv/bin/python ] && is_debian && ! python3 -c 'import ensurepip' 2>/dev/null; then missing+=(python3-venv); fi

if [ ${#missing[@]} -eq 0 ]; then echo "Debian packages: nothing is missing"; exit; fi
echo "Debian packages: missing are ${missing[*]}"
if ! is_debian || [ "$(id -u)" != 0 ]; then
  echo "They are not installed: that takes root on Debian (apt-get install ${missing[*]}). Tests that need them are left out."
  exit 1
elif apt-get update -qq && without_services apt-get install -qq --yes --no-install-recommends "${missing[@]}"; then
  echo "They are installed now."
else
  echo "They could not be installed. Tests that need them are left out."
  exit 1
fi
