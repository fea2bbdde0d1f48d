#!/bin/bash
# demo.sh: sandboxd's main job on a real program, step by step. It starts a daemon of
# its own, builds BusyBox in a sandbox, and builds it again; then two tasks that are
# ended. It needs root, bin/sandboxd (make build), and what `make deps-demo` installs.
# All that it makes is in one directory, which goes at the end.
set -euo pipefail
cd "$(dirname "$0")/.."
sandboxd=$PWD/bin/sandboxd

say() { printf '\n== %s\n' "$*"; }
show() { printf '   $ %s\n' "$*"; }
fail() {
	echo "demo: $*" >&2
	if [ -s "$dir/log" ]; then
		echo 'demo: the daemon said:' >&2
		tail -n 20 "$dir/log" >&2
	fi
	exit 1
}
[ "$(id -u)" = 0 ] || { echo 'demo: the daemon makes namespaces and cgroups, which needs root; run it as root' >&2; exit 1; }
[ -x "$sandboxd" ] || { echo 'demo: there is no bin/sandboxd; run make build' >&2; exit 1; }

dir=$(mktemp -d /var/tmp/sandboxd-demo.XXXXXX)
daemon=
end() {
	status=$?
	trap '' INT TERM
	if [ -n "$daemon" ]; then
		kill "$daemon" 2>/dev/null || true
		wait "$daemon" || status=$((status ? status : 1))
	fi
	rm -rf "$dir"
	exit "$status"
}
trap end EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
chmod 711 "$dir" # a task's first process passes through
export SANDBOXD_SOCKET=$dir/socket

# source_of PACKAGE: its source in $dir/src/, from where the system's apt has its
# packages, by an apt with lists of its own and Debian's keys alone.
source_of() {
	local apt=$dir/apt keys=/usr/share/keyrings/debian-archive-keyring.gpg
	mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$dir/src"
	[ -e "$keys" ] && keys="[signed-by=$keys]" || keys=
	apt-get indextargets --format "deb-src $keys \$(REPO_URI) \$(RELEASE) \$(COMPONENT)" 'Created-By: Packages' 2>/dev/null |
		sort -u >"$apt/sources.list"
	[ -s "$apt/sources.list" ] || return 1
	local get=(apt-get -q -o "Dir::Etc::SourceList=$apt/sources.list" -o Dir::Etc::SourceParts=/dev/null
		-o "Dir::State::Lists=$apt/lists" -o "Dir::Cache=$apt/cache" -o APT::Sandbox::User=root)
	# Some of the sources may not be Debian's, or have no source: one that has is enough.
	"${get[@]}" update >"$apt/log" 2>&1 || true
	(cd "$dir/src" && "${get[@]}" source "$1") >>"$apt/log" 2>&1
}

say 'the source of BusyBox, from Debian'
if source_of busybox; then
	work=$(echo "$dir"/src/busybox-*/)
	output=busybox
	# Headers of Linux 6.8 and later have no CBQ, which networking/tc.c still uses.
	script='make defconfig
sed -i "s/^CONFIG_TC=y/# CONFIG_TC is not set/" .config
make -j$(nproc)'
	try=(./busybox echo 'BusyBox was built in a sandbox')
else
	echo 'no Debian source can be had here; building examples/wordcount instead'
	cp -r examples/wordcount "$dir/src-wordcount"
	work=$dir/src-wordcount
	output=wordcount
	script='make -j$(nproc) check'
	try=(./wordcount expected)
fi
echo "$work: $(find "$work" -name '*.c' | wc -l) files of C"

say 'a daemon on a socket of its own'
show "sandboxd serve --socket $SANDBOXD_SOCKET --state-dir $dir/state --cache-dir $dir/cache &"
"$sandboxd" serve --socket "$SANDBOXD_SOCKET" --state-dir "$dir/state" --cache-dir "$dir/cache" 2>"$dir/log" &
daemon=$!
until "$sandboxd" ping 2>/dev/null; do
	kill -0 "$daemon" 2>/dev/null || fail 'the daemon did not start'
	sleep 0.1
done

compile=("$sandboxd" run --workdir "$work" --output "$output" --network isolated --name do_compile -c "$script")
say "do_compile, without network; of all that it writes only $output comes back"
show "sandboxd run --output $output --network isolated --name do_compile -c '$script'"
began=$(date +%s%N)
"${compile[@]}" >"$dir/build.log" 2>&1 || { tail -n 20 "$dir/build.log" >&2; fail 'the build failed'; }
tail -n 4 "$dir/build.log"
printf 'took %d ms\n' $((($(date +%s%N) - began) / 1000000))
(cd "$work" && show "${try[*]}" && "${try[@]}") || fail "$output does not run"

say 'the same again, with its output gone: nothing runs'
rm "$work/$output"
began=$(date +%s%N)
"${compile[@]}" >"$dir/build.log" 2>&1 || fail 'the second build failed'
took=$((($(date +%s%N) - began) / 1000000))
tail -n 1 "$dir/build.log"
grep -q ', cached' "$dir/build.log" || fail 'the second build was not cached'
[ -x "$work/$output" ] || fail "$output is not back"
echo "took $took ms"
[ "$took" -lt 1000 ] || fail 'the cache took a second or more'

say 'a task that wants to go out: its network policy is isolated'
show "sandboxd run -- bash -c 'echo hello >/dev/tcp/192.0.2.1/80'"
status=0
"$sandboxd" run --workdir none --timeout 10s -- bash -c 'echo hello >/dev/tcp/192.0.2.1/80' 2>"$dir/out" || status=$?
cat "$dir/out"
grep -q 'Network is unreachable' "$dir/out" && [ "$status" = 1 ] || fail "the network was not refused at once (exit status $status)"

say 'a task that wants more memory than it may have'
show "sandboxd run --memory 128M -c 'head -c 1G /dev/zero | tail'"
status=0
"$sandboxd" run --workdir none --memory 128M -c 'head -c 1G /dev/zero | tail' 2>"$dir/out" || status=$?
cat "$dir/out"
echo "exit status $status"
[ "$status" = 137 ] && grep -q 'out of memory' "$dir/out" || fail 'it was not ended by its memory limit'

say 'what the daemon did'
show 'sandboxd status'
"$sandboxd" status
