#!/bin/sh
# build.sh [--check]: compile package guest to shell.wasm.zst, the same bytes on every
# machine; with --check, compare with what is there.
# build.sh --modfile: print the go.mod by which `go build -modfile=` and `go test -modfile=`
# take the interpreter as it is in the module, for any machine.
set -eu
cd "$(dirname "$0")"
here=$PWD
root=$(cd ../../.. && pwd)
work=$root/.cache/wasmshell
go=${GO:-go}
# Another compiler makes other code.
toolchain=$(sed -n 's/^toolchain //p' "$root/go.mod")
GOTOOLCHAIN=$toolchain GOFLAGS= GOWORK=off GOEXPERIMENT= GODEBUG=
[ "$($go env GOVERSION)" != "$toolchain" ] || GOTOOLCHAIN=local
export GOTOOLCHAIN GOFLAGS GOWORK GOEXPERIMENT GODEBUG

# A copy of the interpreter gets what a hook cannot mend; the patch says what. The
# replacement's path is recorded in the module, so it is a relative one.
sh=$($go list -C "$root" -m -f '{{.Dir}}' mvdan.cc/sh/v3)
mkdir -p "$work"
new=$(mktemp -d "$work/new.XXXXXX")
trap 'rm -rf "$new"' EXIT
cp -R "$sh" "$new/sh"
chmod -R u+w "$new/sh"
find "$new/sh" -name '*_test.go' -exec rm -f {} +
patch -d "$new/sh" -p1 -s -F0 <"$here/interpreter.patch" || {
	echo "build.sh: mvdan.cc/sh is not as interpreter.patch knows it" >&2
	exit 1
}
cp "$root/go.mod" "$root/go.sum" "$new"
echo 'replace mvdan.cc/sh/v3 => ./.cache/wasmshell/sh' >>"$new/go.mod"
# What has not changed stays: another build may be reading it.
for f in sh go.mod go.sum; do
	diff -r "$new/$f" "$work/$f" >/dev/null 2>&1 || {
		rm -rf "${work:?}/$f"
		mv "$new/$f" "$work/$f"
	}
done
if [ "${1-}" = --modfile ]; then
	echo "$work/go.mod"
	exit
fi

cd "$root"
CGO_ENABLED=0 GOOS=wasip1 GOARCH=wasm GOWASM= $go build -modfile="$work/go.mod" -trimpath -buildvcs=false -ldflags='-s -w -buildid=' \
	-o "$new/shell.wasm" ./executor/wasm/shell/guest
$go run ./executor/wasm/shell/pack <"$new/shell.wasm" >"$new/shell.wasm.zst"
case ${1-} in
--check)
	cmp "$new/shell.wasm.zst" "$here/shell.wasm.zst" || {
		echo "executor/wasm/shell/shell.wasm.zst is not what its sources make: run make generate" >&2
		exit 1
	} ;;
'') mv "$new/shell.wasm.zst" "$here/shell.wasm.zst" ;;
*)
	echo "usage: build.sh [--check | --modfile]" >&2
	exit 2 ;;
esac
