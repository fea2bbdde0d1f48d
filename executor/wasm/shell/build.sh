#!/bin/sh
# build.sh [--check]: compile package guest to shell.wasm.zst, the same bytes on every
# machine; with --check, compare with what is there.
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
rm -rf "$work/sh"
mkdir -p "$work"
cp -R "$sh" "$work/sh"
chmod -R u+w "$work/sh"
find "$work/sh" -name '*_test.go' -exec rm -f {} +
patch -d "$work/sh" -p1 -s -F0 <"$here/interpreter.patch" || {
	echo "build.sh: mvdan.cc/sh is not as interpreter.patch knows it" >&2
	exit 1
}
cp "$root/go.mod" "$work/go.mod"
cp "$root/go.sum" "$work/go.sum"
echo 'replace mvdan.cc/sh/v3 => ./.cache/wasmshell/sh' >>"$work/go.mod"

cd "$root"
CGO_ENABLED=0 GOOS=wasip1 GOARCH=wasm GOWASM= $go build -modfile="$work/go.mod" -trimpath -buildvcs=false -ldflags='-s -w -buildid=' \
	-o "$work/shell.wasm" ./executor/wasm/shell/guest
$go run ./executor/wasm/shell/pack <"$work/shell.wasm" >"$work/shell.wasm.zst"
case ${1-} in
--check)
	cmp "$work/shell.wasm.zst" "$here/shell.wasm.zst" || {
		echo "executor/wasm/shell/shell.wasm.zst is not what its sources make: run make generate" >&2
		exit 1
	} ;;
'') mv "$work/shell.wasm.zst" "$here/shell.wasm.zst" ;;
*)
	echo "usage: build.sh [--check]" >&2
	exit 2 ;;
esac
