package box

import "strings"

// compareVersions orders as GNU's sort -V and ls -v: runs of digits by their value,
// ~ before everything even the end, letters before other signs.
func compareVersions(a, b string) int {
	if a == "" || b == "" {
		return len(a) - len(b)
	}
	if rank := func(s string) int {
		switch {
		case s == ".":
			return 0
		case s == "..":
			return 1
		case s[0] == '.':
			return 2
		}
		return 3
	}; rank(a) != rank(b) {
		return rank(a) - rank(b)
	}
	pa, pb := a[:versionPrefix(a)], b[:versionPrefix(b)]
	if n := compareParts(pa, pb); n != 0 || pa == a && pb == b {
		return n
	}
	return compareParts(a, b)
}

// versionPrefix is how much of s is before what looks like suffixes of a file, as in .tar.gz.
func versionPrefix(s string) int {
	prefix := 0
	for i := 0; i < len(s); {
		i++
		prefix = i
		for i+1 < len(s) && s[i] == '.' && (isLetter(s[i+1]) || s[i+1] == '~') {
			for i += 2; i < len(s) && (isLetter(s[i]) || isDigit(s[i]) || s[i] == '~'); i++ {
			}
		}
	}
	return prefix
}

func compareParts(a, b string) int {
	for a != "" || b != "" {
		for a != "" && !isDigit(a[0]) || b != "" && !isDigit(b[0]) {
			if n := versionRank(a) - versionRank(b); n != 0 {
				return n
			}
			a, b = a[min(1, len(a)):], b[min(1, len(b)):]
		}
		na := a[:len(a)-len(strings.TrimLeft(a, "0123456789"))]
		nb := b[:len(b)-len(strings.TrimLeft(b, "0123456789"))]
		a, b = a[len(na):], b[len(nb):]
		na, nb = strings.TrimLeft(na, "0"), strings.TrimLeft(nb, "0")
		if n := len(na) - len(nb); n != 0 {
			return n
		}
		if n := strings.Compare(na, nb); n != 0 {
			return n
		}
	}
	return 0
}

func isDigit(b byte) bool { return b >= '0' && b <= '9' }

func isLetter(b byte) bool { return b|0x20 >= 'a' && b|0x20 <= 'z' }

func versionRank(s string) int {
	switch {
	case s == "" || isDigit(s[0]):
		return 0
	case s[0] == '~':
		return -1
	case isLetter(s[0]):
		return int(s[0])
	}
	return int(s[0]) + 256
}
