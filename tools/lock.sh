#!/usr/bin/env bash
# Resolve pyproject.toml afresh and pin the result: requirements/base.txt (the base install) and
# requirements/test.txt (what the tests need beyond it). Usage: tools/lock.sh [python]
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3}
torch=torch==2.13.0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
pins() { "$1/bin/pip" freeze --exclude nearpeak --exclude pip --exclude setuptools | sed 's/+cpu$//' | sort -f; }

"$python" -m venv "$work/base"
"$work/base/bin/pip" install --quiet .
"$python" -m venv "$work/full"
"$work/full/bin/pip" install --quiet "$torch"
"$work/full/bin/pip" install --quiet ".[torch,calibrate,simulate,search,ray,web]" pip'>=25.1'
"$work/full/bin/pip" install --quiet --group dev
pins "$work/base" > "$work/base.txt"
pins "$work/full" > "$work/full.txt"
# One version of each package in both environments: the base's.
{ echo "# The base install, pinned by tools/lock.sh."; cat "$work/base.txt"; } > requirements/base.txt
{ echo "# What the tests need beyond base.txt, pinned by tools/lock.sh."
  grep -vxFf "$work/base.txt" "$work/full.txt"; } > requirements/test.txt
