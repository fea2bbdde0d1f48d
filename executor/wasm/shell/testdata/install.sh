# What a recipe's do_install looks like once BitBake has written it out: variables,
# functions that call each other, here-documents, arrays, and a trap that says where it failed.
export D="$PWD/image" S="$PWD/src" B="$PWD/build"
export prefix=/usr bindir=/usr/bin sysconfdir=/etc libdir=/usr/lib PN=demo PV=1.2

bbnote() { echo "NOTE: $*"; }
bbfatal() { echo "ERROR: $*" >&2; exit 1; }
bb_exit_handler() {
	ret=$?
	case $ret in
	0) ;;
	*) echo "WARNING: exit code $ret from a shell command." ;;
	esac
	echo "done: $ret"
}
trap 'bb_exit_handler' 0
set -e

do_unpack() {
	mkdir -p "$S"
	cat >"$S/$PN.in" <<-'EOF'
	#!/bin/sh
	echo "@PN@ @PV@ from @PREFIX@"
	EOF
	cat >"$S/$PN.conf" <<EOF
name = $PN
version = ${PV}
path = \${HOME}/x
EOF
	for i in 1 2 3; do printf 'plugin %d\n' $i >"$S/plugin$i.so.1.$i"; done
}

do_compile() {
	mkdir -p "$B"
	sed -e "s|@PN@|$PN|g; s|@PV@|$PV|g" -e "s|@PREFIX@|$prefix|" "$S/$PN.in" >"$B/$PN"
}

installed=()
put() { # MODE FILE FOLDER
	install -d "$D$3"
	install -m "$1" "$2" "$D$3/"
	installed+=("$3/$(basename "$2")")
}

do_install() {
	put 0755 "$B/$PN" ${bindir}
	put 0644 "$S/$PN.conf" ${sysconfdir}/$PN
	local f base
	for f in "$S"/plugin*.so.*; do
		base=${f##*/}
		put 0755 "$f" $libdir/$PN
		ln -s "$base" "$D$libdir/$PN/${base%%.so*}.so"
	done
	sed -i -e '/^path/d' -e 's/^version = \(.*\)/version = "\1"/' "$D$sysconfdir/$PN/$PN.conf"
	if [ ! -e "$D/usr/share" ]; then
		install -d -m 0755 "$D/usr/share/doc"
	fi
	echo "$PN" | tee "$D/usr/share/doc/name" >/dev/null
	chown root:root "$D/usr/share/doc/name"
	chmod -R go-w "$D"
}

do_package() {
	declare -A kinds
	local f
	for f in "${installed[@]}"; do
		case $f in
		/usr/bin/*) kinds[bin]+=" $f" ;;
		*.conf) kinds[conf]+=" $f" ;;
		*) kinds[lib]+=" $f" ;;
		esac
	done
	for f in bin conf lib; do echo "$f:${kinds[$f]}"; done
	echo "${#installed[@]} files, last ${installed[-1]}, first two ${installed[*]:0:2}"
	find "$D" -mindepth 1 -printf '%y %m %P %l\n' | sort
}

for task in do_unpack do_compile do_install do_package; do
	bbnote "$task"
	$task
done
"$D$bindir/$PN"
cat "$D$sysconfdir/$PN/$PN.conf"
( set -e; cd "$D"; false; echo never ) || echo "a subshell failed with $?"
[ -L "$D$libdir/$PN/plugin1.so" ] || bbfatal 'no link'
test "$(readlink "$D$libdir/$PN/plugin2.so")" = plugin2.so.1.2 || bbfatal 'wrong link'
false
echo never
