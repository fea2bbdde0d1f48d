#!/bin/bash
# image.sh: print the path of an ext4 image of a small Debian with systemd.
#
# It is made of packages of the system's own apt configuration, and kept under
# ${XDG_CACHE_HOME:-~/.cache}/sandboxd, keyed by the versions of all of them and by
# this script. Without apt's lists, the newest one kept serves.
set -euo pipefail
cache=${XDG_CACHE_HOME:-$HOME/.cache}/sandboxd/images
packages='systemd systemd-sysv dbus kmod nftables iproute2'
mkdir -p "$cache"

# What an empty system would get: names, versions and hashes.
list() {
	apt-get install -y --no-install-recommends --print-uris -o Dir::State::status=/dev/null -o Debug::NoLocking=1 \
		$packages '?essential' 2>/dev/null | sed -n "s/^'[^']*' //p" | sort
}

wanted=$(list) || wanted=
if [ -z "$wanted" ]; then
	kept=$(ls -t "$cache"/*.ext4 2>/dev/null | head -n 1) || true
	[ -z "$kept" ] || { echo "$kept"; exit; }
	if [ "$(id -u)" = 0 ] && [ -z "${IMAGE_SH_AGAIN:-}" ] && command -v apt-get >/dev/null; then
		echo 'image.sh: apt-get update' >&2
		apt-get update -q >&2 && IMAGE_SH_AGAIN=1 exec "$0"
	fi
	echo "image.sh: apt has no lists of packages: run 'apt-get update' as root, or set VM_IMAGE to an image" >&2
	exit 1
fi
image=$cache/systemd-$({ echo "$wanted"; cat "$0"; } | sha256sum | cut -c1-16).ext4
[ ! -s "$image" ] || { echo "$image"; exit; }
[ "$(id -u)" = 0 ] || { echo 'image.sh: only root can make the image: run once as root, or set VM_IMAGE to one' >&2; exit 1; }

echo 'image.sh: making the image' >&2
work=$(mktemp -d)
trap 'rm -rf "$work" "$image.$$"' EXIT
root=$work/root log=$work/log
sources=()
for f in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
	[ ! -s "$f" ] || sources+=("$f")
done
# What it mounts stays in a mount namespace of its own.
if ! unshare -m --propagation private mmdebstrap --quiet --mode=root --variant=essential --include="${packages// /,}" \
	--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
	--dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/info/*' \
	--aptopt='Acquire::Languages "none"' --aptopt='APT::Sandbox::User "root"' '' "$root" "${sources[@]}" >"$log" 2>&1; then
	cat "$log" >&2
	# Lists that are too old name what the archive has no more.
	if [ -z "${IMAGE_SH_AGAIN:-}" ]; then
		echo 'image.sh: apt-get update' >&2
		apt-get update -q >&2 && { rm -rf "$work"; IMAGE_SH_AGAIN=1 exec "$0"; }
	fi
	exit 1
fi
echo vmtest >"$root/etc/hostname"
printf '127.0.0.1 localhost\n::1 localhost\n' >"$root/etc/hosts"
: >"$root/etc/fstab"
# Without one, or with "uninitialized", the first boot enables every unit.
echo 5a6d0d7e5a6d0d7e5a6d0d7e5a6d0d7e >"$root/etc/machine-id"
rm -f "$root/etc/resolv.conf" "$root"/var/log/*.log "$root/var/cache/ldconfig/aux-cache"
# What a throwaway machine without udev, disks and network would wait for, or does for nobody.
for unit in getty.target systemd-update-utmp.service systemd-update-utmp-runlevel.service e2scrub_reap.service e2scrub_all.timer \
	apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer fstrim.timer systemd-timesyncd.service systemd-pstore.service \
	systemd-network-generator.service systemd-networkd.service systemd-sysusers.service systemd-remount-fs.service systemd-journal-flush.service \
	systemd-random-seed.service systemd-machine-id-commit.service systemd-firstboot.service systemd-modules-load.service \
	sys-kernel-debug.mount sys-kernel-tracing.mount dev-hugepages.mount modprobe@configfs.service modprobe@drm.service \
	modprobe@efi_pstore.service modprobe@fuse.service modprobe@dm_mod.service modprobe@loop.service kmod-static-nodes.service \
	proc-sys-fs-binfmt_misc.automount systemd-binfmt.service nftables.service; do
	ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
mkdir -p "$root/etc/systemd/journald.conf.d"
printf '[Journal]\nStorage=volatile\nRateLimitIntervalSec=0\n' >"$root/etc/systemd/journald.conf.d/vmtest.conf"
truncate -s 2G "$image.$$"
PATH=$PATH:/usr/sbin:/sbin mke2fs -q -t ext4 -d "$root" -O ^has_journal,^metadata_csum,^64bit -m 0 -E nodiscard "$image.$$"
mv "$image.$$" "$image"
# Nobody asks for the older ones again but who has no lists.
ls -t "$cache"/*.ext4 | tail -n +3 | xargs -r rm -f
echo "$image"
