#!/usr/bin/env bash
# arm_root.sh WORK: a 64-bit ARM Python with numpy, Pillow and onnxruntime in WORK/root and WORK/site, for places.py.
# Needs Debian 12, root (dpkg learns of the architecture arm64 for a moment) and qemu-user-static.
set -euo pipefail
work=$(realpath -m "$1")
mkdir -p "$work"/{debs,root/proc,site,wheels}
known=$(dpkg --print-foreign-architectures)
if [[ $known != *arm64* ]]; then
  dpkg --add-architecture arm64
  trap 'dpkg --remove-architecture arm64' EXIT
  apt-get update -qq
fi
cd "$work/debs"
packages=(python3.11-minimal libpython3.11-minimal libpython3.11-stdlib libc6 libgcc-s1 libstdc++6 zlib1g libexpat1
  libffi8 libssl3 libbz2-1.0 liblzma5 libcrypt1 libuuid1)
apt-get download -q "${packages[@]/%/:arm64}"
for file in *.deb; do dpkg -x "$file" "$work/root"; done
version=$(python3 -c 'import onnxruntime; print(onnxruntime.__version__)')
pip download -q --no-deps --only-binary :all: --python-version 3.11 -d "$work/wheels" \
  --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux2014_aarch64 \
  numpy pillow "onnxruntime==$version" flatbuffers packaging protobuf
for file in "$work"/wheels/*.whl; do python3 -m zipfile -e "$file" "$work/site"; done
# qemu 7 shows programs the host's own file, in which onnxruntime finds no ARM CPU, and ends. A Cortex-A76:
printf 'processor\t: 0\nFeatures\t: fp asimd aes pmull sha1 sha2 crc32 atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x3\nCPU part\t: 0xd0b\nCPU revision\t: 0\n' \
  >"$work/root/proc/cpuinfo"
