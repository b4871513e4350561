#!/usr/bin/env bash
# Writes the build id: one hash over all that decides what the image does. The same inputs give the same id on every
# machine; it stands in every record (`image` in environment.json), next to the commit where that is known.
#
#     write_build_id.sh BASE_IMAGE FILE
set -euo pipefail

base_image=$1 file=$2

{
    echo "$base_image"
    dpkg-query --show
    find . -type f ! -path './src/*.egg-info/*' -print0 | LC_ALL=C sort --zero-terminated | xargs -0 sha256sum
} | sha256sum | sed 's/ .*//; s/^/build-sha256:/' >"$file"
