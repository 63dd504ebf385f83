#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Makes the device files that the CUDA driver needs for a GPU, by its number in the order of the PCI bus. Device files
# are named by minor numbers, whose order is another one; which GPU has which, the kernel module says once it is loaded.
#
#     kvcached-devices GPU [FOLDER]
#
# FOLDER is where the module tells of its GPUs: in folders that are called by their places on the bus.
set -eu
LC_ALL=C # the order of the bus is that of these bytes
export LC_ALL
control_minor=255 # /dev/nvidiactl
gpu=$1
folder=${2:-/proc/driver/nvidia/gpus}

# What the driver excludes from use has no number.
minor_of() {
    at=0
    for information in "$folder"/*/information; do
        [ -r "$information" ] || continue
        ! grep -q '^\(GPU Excluded\|Blacklisted\):[[:space:]]*Yes' "$information" || continue
        if [ "$at" = "$1" ]; then
            sed -n 's/^Device Minor:[[:space:]]*\([0-9][0-9]*\)[[:space:]]*$/\1/p' "$information"
            return
        fi
        at=$((at + 1))
    done
}

# In this order: the first loads the kernel module. With the third option, which loads the one for unified memory, the
# number is that of its own device file.
nvidia-modprobe "--create-nvidia-device-file=$control_minor"
minor=$(minor_of "$gpu")
if [ -z "$minor" ]; then
    echo "The driver knows no GPU $gpu" >&2
    exit 1
fi
nvidia-modprobe "--create-nvidia-device-file=$minor"
nvidia-modprobe --unified-memory --create-nvidia-device-file=0
