#!/bin/sh
# A static site from text: posts with a head of "key: value" lines and a body with a
# few marks, as pages, an index from the newest on, a list of words, and an archive.
set -eu
out=$PWD/out src=$PWD/posts
mkdir -p "$src" "$out/posts"
trap 'rm -rf "$tmp"' EXIT
tmp=$(mktemp -d)

post() { # NAME TITLE DATE, body on standard input
	{
		printf 'title: %s\ndate: %s\n\n' "$2" "$3"
		cat
	} >"$src/$1.txt"
}
post hello 'Hello & welcome' 2024-03-01 <<'EOF'
# Hello

This is *the first* post, with `code` and a [link](https://example.org/a?b=c&d=e).

- one
- two < three

Bye.
EOF
post second 'A second "one"' 2024-01-15 <<'EOF'
# Second

Nothing *new* here.
EOF
post third 'Third time' 2025-11-30 <<'EOF'
## Lists

- alpha
- beta
- gamma
EOF

field() { sed -n "1,/^\$/s/^$1: *//p" "$2"; }
escape() { sed -e 's/&/\&amp;/g' -e 's/</\&lt;/g' -e 's/>/\&gt;/g'; }
render() {
	sed '1,/^$/d' "$1" | escape | sed -E \
		-e 's/^## (.*)/<h2>\1<\/h2>/' -e 's/^# (.*)/<h1>\1<\/h1>/' \
		-e 's/\*([^*]+)\*/<em>\1<\/em>/g' -e 's/`([^`]+)`/<code>\1<\/code>/g' \
		-e 's/\[([^]]+)\]\(([^)]+)\)/<a href="\2">\1<\/a>/g' |
		sed -e '/^- /{
s/^- \(.*\)/<li>\1<\/li>/
}' -e '/^[^<]/s/.*/<p>&<\/p>/' | awk '
		/^<li>/ { if (!list) print "<ul>"; list = 1 }
		!/^<li>/ { if (list) print "</ul>"; list = 0 }
		NF { print }
		END { if (list) print "</ul>" }'
}
page() { # TITLE
	title=$(printf '%s' "$1" | escape)
	cat <<-EOF
	<!doctype html>
	<title>$title</title>
	EOF
	cat
}

: >"$tmp/index"
for f in "$src"/*.txt; do
	name=$(basename "$f" .txt)
	title=$(field title "$f")
	date=$(field date "$f")
	render "$f" | page "$title" >"$out/posts/$name.html"
	printf '%s\t%s\t%s\n' "$date" "$name" "$title" >>"$tmp/index"
done
sort -r "$tmp/index" | while IFS='	' read -r date name title; do
	printf '<li>%s <a href="posts/%s.html">%s</a></li>\n' "$(date -u -d "$date" '+%e %b %Y')" "$name" "$(printf '%s' "$title" | escape)"
done | page 'All posts' >"$out/index.html"
cat "$src"/*.txt | tr -cs '[:alpha:]' '\n' | tr '[:upper:]' '[:lower:]' | sort | uniq -c | sort -k1,1nr -k2 | head -n 8 | sed 's/^ *//' >"$out/words"
find "$out" -type f -name '*.html' | sed "s|^$out/||" | sort >"$out/manifest"
(cd "$out" && sha256sum $(cat manifest)) >"$out/sums"
(cd "$out" && sha256sum -c --quiet sums)
find "$out" -exec touch -d @0 {} +
tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -czf site.tar.gz -C "$out" .
tar -tzf site.tar.gz | sort
mkdir again && tar -xzf site.tar.gz -C again && diff -r "$out" again && echo same
rm site.tar.gz
