package box

import (
	"context"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"strings"

	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/tool"
)

func sums() map[string]tool.Func {
	return map[string]tool.Func{
		"md5sum": sum("MD5", md5.New), "sha1sum": sum("SHA1", sha1.New), "sha224sum": sum("SHA224", sha256.New224),
		"sha256sum": sum("SHA256", sha256.New), "sha384sum": sum("SHA384", sha512.New384), "sha512sum": sum("SHA512", sha512.New),
	}
}

// sum is the tool for one digest.
func sum(algorithm string, newHash func() hash.Hash) tool.Func {
	return func(_ context.Context, c *tool.Call) int {
		f, names, status, ok := c.Parse(tool.Options{Short: "bctwz", Long: "binary=b check=c text=t warn=w zero=z tag quiet status strict ignore-missing"})
		if !ok {
			return status
		}
		buf := make([]byte, 32<<10)
		digest := func(name string) (string, error) {
			r, err := c.Input(name)
			if err != nil {
				return "", err
			}
			defer r.Close()
			h := newHash()
			_, err = io.CopyBuffer(h, struct{ io.Reader }{r}, buf)
			return hex.EncodeToString(h.Sum(nil)), err
		}
		if len(names) == 0 {
			names = []string{"-"}
		}
		if f.Has("c") {
			k := checker{c: c, f: f, digest: digest, algorithm: algorithm, size: 2 * newHash().Size()}
			for _, n := range names {
				k.list(n)
			}
			return k.status
		}
		mark := " "
		if f.Has("b") {
			mark = "*"
		}
		for _, n := range names {
			d, err := digest(n)
			switch {
			case err != nil:
				status = c.Fail("%s: %s", n, tool.Text(err))
			case f.Has("tag"):
				fmt.Fprintf(c.Out, "%s (%s) = %s%s", algorithm, n, d, end(f))
			default:
				esc := ""
				if !f.Has("z") && strings.ContainsAny(n, "\\\n") {
					esc, n = `\`, strings.NewReplacer(`\`, `\\`, "\n", `\n`).Replace(n)
				}
				fmt.Fprintf(c.Out, "%s%s %s%s%s", esc, d, mark, n, end(f))
			}
		}
		return status
	}
}

// checker verifies lists of digests.
type checker struct {
	c         *tool.Call
	f         tool.Flags
	digest    func(string) (string, error)
	algorithm string
	size      int
	status    int
}

func (k *checker) list(name string) {
	r, err := k.c.Input(name)
	if err != nil {
		k.status = k.c.Fail("%s: %s", name, tool.Text(err))
		return
	}
	defer r.Close()
	var good, wrong, unread, malformed int
	quiet := k.f.Has("status")
	err = lines(r, '\n', func(s string, _ bool) bool {
		want, file, ok := k.parse(s)
		if !ok {
			if s != "" && s[0] != '#' {
				malformed++
			}
			return true
		}
		got, err := k.digest(file)
		switch {
		case err != nil && k.f.Has("ignore-missing"):
		case err != nil:
			k.c.Out.Flush()
			k.c.Errorf("%s: %s", file, tool.Text(err))
			if !quiet {
				fmt.Fprintf(k.c.Out, "%s: FAILED open or read\n", file)
			}
			unread++
		case got != strings.ToLower(want):
			if !quiet {
				fmt.Fprintf(k.c.Out, "%s: FAILED\n", file)
			}
			wrong++
		default:
			if good++; !quiet && !k.f.Has("quiet") {
				fmt.Fprintf(k.c.Out, "%s: OK\n", file)
			}
		}
		return true
	})
	if err != nil {
		k.status = k.c.Fail("%s: %s", name, tool.Text(err))
	}
	if good+wrong+unread == 0 {
		k.status = k.c.Fail("%s: no properly formatted checksum lines found", name)
		return
	}
	warn := func(n int, one, many string) {
		if n > 0 && !quiet {
			if n != 1 {
				one = many
			}
			k.c.Out.Flush()
			k.c.Errorf("WARNING: %d %s", n, one)
		}
	}
	warn(malformed, "line is improperly formatted", "lines are improperly formatted")
	warn(unread, "listed file could not be read", "listed files could not be read")
	warn(wrong, "computed checksum did NOT match", "computed checksums did NOT match")
	if wrong+unread > 0 || malformed > 0 && k.f.Has("strict") {
		k.status = 1
	}
}

func (k *checker) parse(s string) (digest, file string, ok bool) {
	if rest, tagged := strings.CutPrefix(s, k.algorithm+" ("); tagged {
		i := strings.LastIndex(rest, ") = ")
		if i < 0 {
			return "", "", false
		}
		return rest[i+4:], rest[:i], len(rest[i+4:]) == k.size
	}
	escaped := false
	s, escaped = strings.CutPrefix(s, `\`)
	if len(s) < k.size+3 || s[k.size] != ' ' || s[k.size+1] != ' ' && s[k.size+1] != '*' {
		return "", "", false
	}
	if _, err := hex.DecodeString(s[:k.size]); err != nil {
		return "", "", false
	}
	file = s[k.size+2:]
	if escaped {
		file = strings.NewReplacer(`\\`, `\`, `\n`, "\n").Replace(file)
	}
	return s[:k.size], file, true
}
