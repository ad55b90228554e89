#!/usr/bin/env bash
# Gradescope runs this once, as root, when it builds the image.
set -e
root=${AUTOGRADER:-/autograder}
apt-get update && apt-get install -y python3 python3-venv
python3 -m venv "$root/venv"
"$root/venv/bin/pip" install @NEEDS@
