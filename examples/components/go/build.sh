#!/bin/sh
# build.sh DIR: make DIR/executor.wasm.
set -eu
cd "$(dirname "$0")"
# c-shared is a reactor: it has no main that runs, and is called.
GOOS=wasip1 GOARCH=wasm CGO_ENABLED=0 "${GO:-go}" build -buildmode=c-shared -trimpath -ldflags='-s -w' -o "$1/executor.wasm" .
