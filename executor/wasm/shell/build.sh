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

# The interpreter makes pipes by the kernel on all systems but js. WASI has none
# either, so a copy of it gets ours. The replacement's path is recorded in the module, so
# it is a relative one.
sh=$($go list -C "$root" -m -f '{{.Dir}}' mvdan.cc/sh/v3)
rm -rf "$work/sh"
mkdir -p "$work"
cp -R "$sh" "$work/sh"
chmod -R u+w "$work/sh"
find "$work/sh" -name '*_test.go' -exec rm -f {} +
sed -i.orig 's|^//go:build !js$|//go:build !js \&\& !wasip1|' "$work/sh/interp/stdin_os.go"
sed -i.orig -e 's|^//go:build js$|//go:build wasip1|' \
	-e 's|^	"time"$|&\n\n	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/pipe"|' \
	-e 's|(stdinFile, \*io.PipeWriter, error)|(stdinFile, *pipe.Writer, error)|' \
	-e 's|io\.Pipe()|pipe.New()|' "$work/sh/interp/stdin_js.go"
mv "$work/sh/interp/stdin_js.go" "$work/sh/interp/stdin_wasip1.go"
grep -q 'pipe.New()' "$work/sh/interp/stdin_wasip1.go" && grep -q '!wasip1' "$work/sh/interp/stdin_os.go" || {
	echo "build.sh: mvdan.cc/sh is not as this script knows it" >&2
	exit 1
}
# It nests functions, eval and source without a bound, and the host's stack has one.
cat >"$work/sh/interp/nesting.go" <<'EOF'
package interp

const maxNesting = 1000

// enter begins a level, or ends the shell as bash does where a level is too many.
func (r *Runner) enter(what, name string) bool {
	if r.nesting < maxNesting {
		r.nesting++
		return true
	}
	r.errf("sh: %s: maximum %s nesting level exceeded (%d)\n", name, what, maxNesting)
	r.exit = exitStatus{code: 1, exiting: true}
	return false
}

func (r *Runner) leave() { r.nesting-- }
EOF
sed -i.orig -e 's|^	inFunc       bool$|&\n	nesting      int|' -e 's|^		filename:       r.filename,$|&\n		nesting:        r.nesting,|' "$work/sh/interp/api.go"
sed -i.orig -e 's|^	if body := r.Funcs\[name\]; body != nil {$|&\n		if !r.enter("function", name) {\n			return\n		}|' \
	-e 's|^		r.stmt(ctx, body)$|&\n		r.leave()|' "$work/sh/interp/runner.go"
sed -i.orig 's|^		r.stmts(ctx, file.Stmts)$|		if r.enter(name, name) {\n&\n			r.leave()\n		}|' "$work/sh/interp/builtin.go"
[ "$(cat "$work/sh/interp/api.go" "$work/sh/interp/runner.go" "$work/sh/interp/builtin.go" | grep -c -e '^	nesting  ' -e ' r\.nesting,$' -e 'r\.enter(' -e 'r\.leave()')" = 8 ] || {
	echo "build.sh: mvdan.cc/sh is not as this script knows it" >&2
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
