#!/bin/bash
# demo.sh: sandboxd's main job on a real program, step by step. It starts a daemon of
# its own, builds BusyBox in a sandbox, and builds it again; then two tasks that are
# ended. It needs root, bin/sandboxd (make build), and what `make deps-demo` installs.
# All that it makes is in one directory, which goes at the end.
set -euo pipefail
cd "$(dirname "$0")/.."
sandboxd=$PWD/bin/sandboxd

now() { echo $((${EPOCHREALTIME//[!0-9]/} / 1000)); } # milliseconds
start=$(now)
# say STEP: with the seconds since the start.
say() {
	local t=$(($(now) - start))
	printf '\n== %d.%d s: %s\n' $((t / 1000)) $((t % 1000 / 100)) "$*"
}
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

dir=
daemon=
# stop ends the daemon as systemd does; its exit status is the daemon's.
stop() {
	local pid=$daemon
	daemon=
	kill -TERM "$pid" && wait "$pid"
}
end() {
	status=$?
	trap '' HUP INT TERM
	[ -z "$daemon" ] || stop || status=$((status ? status : 1))
	# Were a mount left in it, what is mounted must not go.
	[ -z "$dir" ] || rm -rf --one-file-system "$dir"
	exit "$status"
}
trap end EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
dir=$(mktemp -d /var/tmp/sandboxd-demo.XXXXXX)
chmod 711 "$dir" # a task's first process passes through
export SANDBOXD_SOCKET=$dir/socket

# apt_sources DIR: the system's sources of packages, in either style, as sources of
# source code in DIR. They keep their options and keys.
apt_sources() {
	local SOURCELIST='' SOURCEPARTS='' f
	eval "$(apt-config shell SOURCELIST Dir::Etc::sourcelist/f SOURCEPARTS Dir::Etc::sourceparts/d)"
	mkdir -p "$1"
	for f in "$SOURCELIST" "$SOURCEPARTS"/*.list; do
		[ ! -f "$f" ] || sed -nE 's/^[[:space:]]*deb(-src)?[[:space:]]/deb-src /p' "$f" | sort -u >>"$1/${f##*/}"
	done
	for f in "$SOURCEPARTS"/*.sources; do
		[ ! -f "$f" ] || sed -E 's/^types:.*/Types: deb-src/I' "$f" >"$1/${f##*/}"
	done
	grep -qsE '^(deb-src |Types:)' "$1"/*
}

# source_of PACKAGE: its source in $dir/src/, by an apt whose sources, lists and cache
# are in $dir/apt. If it cannot be had, the reason is in $dir/why.
source_of() {
	local apt=$dir/apt tool
	for tool in apt-get apt-config dpkg-source; do
		command -v "$tool" >/dev/null || { echo "there is no $tool; see make deps-demo" >"$dir/why"; return 1; }
	done
	apt_sources "$apt/sources" || { echo 'apt has no sources on this machine' >"$dir/why"; return 1; }
	mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$dir/src"
	# What the system does after its own update (refresh catalogues, tidy its cache) is not for this one.
	printf '#clear APT::Update::%s;\n' Pre-Invoke Post-Invoke Post-Invoke-Success >"$apt/conf"
	local get=(apt-get -q -c "$apt/conf" -o Dir::Etc::SourceList=/dev/null -o "Dir::Etc::SourceParts=$apt/sources"
		-o "Dir::State::Lists=$apt/lists" -o "Dir::Cache=$apt/cache" -o APT::Sandbox::User=root)
	# Some of the sources may not be Debian's, or have no source: one that has is enough.
	"${get[@]}" update >"$apt/log" 2>&1 || true
	(cd "$dir/src" && "${get[@]}" source "$1") >>"$apt/log" 2>&1 && return
	grep -E '^[EW]:' "$apt/log" | head -n 3 >"$dir/why" || cp "$apt/log" "$dir/why"
	return 1
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
	echo 'no Debian source can be had here, so examples/wordcount is built instead. The reason:'
	sed 's/^/   /' "$dir/why"
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
for ((tries = 100; ; tries--)); do
	! "$sandboxd" ping 2>/dev/null || break
	kill -0 "$daemon" 2>/dev/null && [ "$tries" -gt 0 ] || fail 'the daemon did not start'
	sleep 0.1
done

compile=("$sandboxd" run --workdir "$work" --output "$output" --network isolated --name do_compile -c "$script")
say "do_compile, without network; of all that it writes only $output comes back"
show "sandboxd run --output $output --network isolated --name do_compile -c '$script'"
began=$(now)
"${compile[@]}" >"$dir/build.log" 2>&1 || { tail -n 20 "$dir/build.log" >&2; fail 'the build failed'; }
tail -n 4 "$dir/build.log"
echo "took $(($(now) - began)) ms"
(cd "$work" && show "${try[*]}" && "${try[@]}") || fail "$output does not run"

say 'the same again, with its output gone: nothing runs'
rm "$work/$output"
began=$(now)
"${compile[@]}" >"$dir/build.log" 2>&1 || fail 'the second build failed'
took=$(($(now) - began))
tail -n 1 "$dir/build.log"
grep -q ', cached' "$dir/build.log" || fail 'the second build was not cached'
[ -x "$work/$output" ] || fail "$output is not back"
echo "took $took ms"
[ "$took" -lt 1000 ] || fail 'the cache took a second or more'

say 'a task that wants to go out: its network policy is isolated'
show "sandboxd run --workdir none --timeout 10s -- bash -c 'echo hello >/dev/tcp/192.0.2.1/80'"
status=0
"$sandboxd" run --workdir none --timeout 10s -- bash -c 'echo hello >/dev/tcp/192.0.2.1/80' 2>"$dir/out" || status=$?
cat "$dir/out"
grep -q 'Network is unreachable' "$dir/out" && [ "$status" = 1 ] || fail "the network was not refused at once (exit status $status)"

say 'a task that wants more memory than it may have'
show "sandboxd run --workdir none --memory 128M --json -c 'head -c 1G /dev/zero | tail'"
status=0
"$sandboxd" run --workdir none --memory 128M --json -c 'head -c 1G /dev/zero | tail' >"$dir/out" || status=$?
echo "$(grep -oE '"(cause|evidence)":"[^"]*"' "$dir/out" | paste -sd ' '), exit status $status"
[ "$status" = 137 ] && grep -q '"cause":"oom_killed"' "$dir/out" || fail 'it was not ended by its memory limit'

say 'what the daemon did'
show 'sandboxd status'
"$sandboxd" status | tee "$dir/out"
grep -qE '^executed +4$' "$dir/out" && grep -qE '^failed +2$' "$dir/out" || fail 'it did not count four tasks, two of them failed'

say 'the daemon stops at SIGTERM'
stop || fail "the daemon ended with exit status $?"
[ ! -e "$SANDBOXD_SOCKET" ] || fail 'its socket is still there'
! grep -F " $dir" /proc/self/mountinfo || fail 'it left the mounts above'
say "done; $dir goes, and with it all that was made"
