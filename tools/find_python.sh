#!/bin/sh
# Prints a Python from 3.11 on that runs and can make virtual environments: $PYTHON if set, else the machine's own
# python3 if it is new enough, else the newest found. (The machine's own first: the index it is set up with has the small
# builds of the pinned packages for it.)
set -u
usable='import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2])'
for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
  if "$candidate" -c "$usable" >/dev/null 2>&1; then
    command -v "$candidate"
    exit 0
  fi
done
if [ -n "${PYTHON:-}" ]; then
  echo "make: found PYTHON=$PYTHON, which does not run, is older than 3.11 or lacks venv; name another interpreter" >&2
else
  echo "make: found no Python 3.11 or newer with venv; install one (Debian: apt-get install python3 python3-venv)" >&2
  echo "      or name it: make PYTHON=/path/to/python3" >&2
fi
exit 1
