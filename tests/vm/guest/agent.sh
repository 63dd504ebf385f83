#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Runs what the tests ask for. First it says hello, and which boot this is. A question is a line: a script in base64. An answer is one, too: the script's status,
# its output and its errors, the latter two in base64 ("-": nothing).
exec 3<>/dev/virtio-ports/tests
work=$(mktemp -d -p /run)

encoded() { if [ -s "$1" ]; then base64 -w0 "$1"; else echo -; fi; }

echo "hello $(cat /proc/sys/kernel/random/boot_id)" >&3
while read -r question <&3; do
    base64 -d <<<"$question" >"$work/script"
    (cd / && exec 3>&- && exec bash "$work/script") >"$work/out" 2>"$work/err" </dev/null
    printf '%s %s %s\n' "$?" "$(encoded "$work/out")" "$(encoded "$work/err")" >&3
done
