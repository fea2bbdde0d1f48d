#!/bin/sh
# build.sh DIR: make DIR/executor.wasm. What npm fetches goes into DIR, too.
set -eu
cd "$(dirname "$0")"
cp package.json "$1/"
(cd "$1" && npm install --prefer-offline --no-audit --no-fund --loglevel=error >&2)
# Without the interfaces of WASI: the program needs none.
"$1/node_modules/.bin/jco" componentize executor.js --wit ../../../wit --world-name executor-component --disable all -o "$1/executor.wasm" >&2
