#!/bin/sh
# kernel.sh PACKAGE...: print the folder of an unpacked Debian kernel.
#
# The first PACKAGE that apt knows is downloaded, unpacked (never installed) and
# kept under ${XDG_CACHE_HOME:-~/.cache}/sandboxd, keyed by its version. Without
# apt's lists, the newest one kept serves.
set -eu
cache=${XDG_CACHE_HOME:-$HOME/.cache}/sandboxd/kernels
mkdir -p "$cache"

# again PACKAGE...: start anew once with fresh lists, where that is ours to do.
again() {
	if [ "$(id -u)" = 0 ] && [ -z "${KERNEL_SH_AGAIN:-}" ] && command -v apt-get >/dev/null; then
		echo 'kernel.sh: apt-get update' >&2
		apt-get update -q >&2 && KERNEL_SH_AGAIN=1 exec "$0" "$@"
	fi
}

for meta in "$@"; do
	# The meta package depends on the one that holds the kernel.
	pkg=$(apt-cache depends "$meta" 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
	[ -n "$pkg" ] || continue
	version=$(apt-cache show --no-all-versions "$pkg" | sed -n 's/^Version: //p' | head -n 1)
	dir=$cache/$meta/$pkg-$version
	if [ ! -d "$dir" ]; then
		echo "kernel.sh: fetching $pkg $version" >&2
		mkdir -p "$cache/$meta"
		tmp=$(mktemp -d "$cache/tmp.XXXXXX")
		trap 'rm -rf "$tmp"' EXIT
		# Newer apt keeps /boot/vmlinuz and the modules in one package, as older does.
		if ! (cd "$tmp" && apt-get download -q "$pkg" >log 2>&1); then
			cat "$tmp/log" >&2
			rm -rf "$tmp"
			again "$@" # lists too old name what the archive has no more
			exit 1
		fi
		dpkg -x "$tmp"/*.deb "$tmp/x"
		[ -d "$tmp/x/lib/modules" ] || { mkdir -p "$tmp/x/lib"; mv "$tmp/x/usr/lib/modules" "$tmp/x/lib/modules"; }
		mv -T "$tmp/x" "$dir" 2>/dev/null || [ -d "$dir" ]
	fi
	echo "$dir"
	exit
done

for meta in "$@"; do
	kept=$(ls -td "$cache/$meta"/*/ 2>/dev/null | head -n 1)
	[ -z "$kept" ] || { echo "${kept%/}"; exit; }
done
again "$@"
echo "kernel.sh: apt knows none of: $*: run 'make deps', or on another system unpack a kernel package and set VM_KERNEL to its folder" >&2
exit 1
