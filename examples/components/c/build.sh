#!/bin/sh
# build.sh DIR: make DIR/executor.wasm.
set -eu
cd "$(dirname "$0")"
for cc in clang-19 clang; do
	command -v $cc >/dev/null && break
done
# A reactor: it has no main, and is called.
$cc --target=wasm32-wasi -mexec-model=reactor -O2 -Wall -Wextra -o "$1/executor.wasm" executor.c
