#!/bin/bash
# generate.sh [--check]: make the Go code of executor.proto; with --check, compare it
# with what is there. Needs protoc (Debian: protobuf-compiler); the plugins are
# tools of go.mod.
set -euo pipefail
cd "$(dirname "$0")"
go=${GO:-go}
protoc=$(command -v protoc) || { echo "generate.sh: no protoc; make deps installs it" >&2; exit 1; }
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
for plugin in google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc; do
	"$go" build -o "$tmp/" "$plugin"
done
mkdir "$tmp/out"
PATH=$tmp:$PATH "$protoc" --go_out="$tmp/out" --go_opt=paths=source_relative \
	--go-grpc_out="$tmp/out" --go-grpc_opt=paths=source_relative executor.proto
# Which protoc it was makes no difference to the code, so it is not recorded.
sed -i '/^\/\/ .*protoc  *v[0-9]/d' "$tmp"/out/*.pb.go
if [ "${1:-}" != --check ]; then
	cp "$tmp"/out/*.pb.go .
	exit 0
fi
for f in "$tmp"/out/*.pb.go; do
	diff -u "${f##*/}" "$f" || { echo "${f##*/} is stale: run make generate"; exit 1; }
done
