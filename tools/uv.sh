#!/bin/sh
# Run uv with the arguments given: the one on PATH, else one kept in .tools, made with pip.
# Says in one line what this machine lacks. Nothing is installed outside this folder.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
missing=""

need() { # need PACKAGE COMMAND...: remember the Debian package when the command fails
    package=$1
    shift
    "$@" >/dev/null 2>&1 || missing="$missing $package"
}

openmp() { # LightGBM's wheel needs the system's libgomp.so.1; on a Mac, libomp: see the README
    [ "$(uname -s)" != Linux ] || PATH="$PATH:/usr/sbin:/sbin" ldconfig -p | grep -q 'libgomp\.so\.1'
}

need git git --version
need libgomp1 openmp

if uv=$(command -v uv); then
    :
elif [ -x "$root/.tools/bin/uv" ]; then
    uv="$root/.tools/bin/uv"
else
    uv=""
    need python3-pip python3 -m pip --version # where its Python is older than 3.11, uv brings one
fi

if [ -n "$missing" ]; then
    echo "Missing here:$missing. On Debian or Ubuntu: sudo apt-get install -y$missing" >&2
    exit 2
fi

if [ -z "$uv" ]; then
    # --target is allowed where Debian's Python refuses other installs, and needs no python3-venv.
    echo "uv is not here: installing it into .tools with pip" >&2
    new=$(mktemp -d "$root/.tools.XXXXXX")
    trap 'rm -rf "$new"' EXIT
    python3 -m pip install --quiet --disable-pip-version-check --target "$new" 'uv>=0.9,<1'
    mv "$new" "$root/.tools" # whole or not at all
    trap - EXIT
    uv="$root/.tools/bin/uv"
fi

PATH="$(dirname "$uv"):$PATH"
export PATH
exec "$uv" "$@"
