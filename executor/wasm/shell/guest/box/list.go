package box

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/tool"
)

// modeString is the ten letters of ls -l.
func modeString(m fs.FileMode) string {
	b := []byte("-rwxrwxrwx")
	switch {
	case m.IsDir():
		b[0] = 'd'
	case m&fs.ModeSymlink != 0:
		b[0] = 'l'
	case m&fs.ModeCharDevice != 0:
		b[0] = 'c'
	case m&fs.ModeDevice != 0:
		b[0] = 'b'
	case m&fs.ModeNamedPipe != 0:
		b[0] = 'p'
	case m&fs.ModeSocket != 0:
		b[0] = 's'
	}
	for i := range 9 {
		if m&(0o400>>i) == 0 {
			b[i+1] = '-'
		}
	}
	for _, s := range []struct {
		bit   fs.FileMode
		at    int
		x, no byte
	}{{fs.ModeSetuid, 3, 's', 'S'}, {fs.ModeSetgid, 6, 's', 'S'}, {fs.ModeSticky, 9, 't', 'T'}} {
		if m&s.bit == 0 {
			continue
		}
		if b[s.at] == 'x' {
			b[s.at] = s.x
		} else {
			b[s.at] = s.no
		}
	}
	return string(b)
}

type entry struct {
	name string
	fs.FileInfo
	target string
}

type lister struct {
	c      *tool.Call
	f      tool.Flags
	status int
	shown  bool

	times     string // the format of times, if given
	dirsFirst bool
}

func ls(_ context.Context, c *tool.Call) int {
	f, names, status, ok := c.Parse(tool.Options{Short: "1aAldrtSRFpihngoLHUvXsQm", Long: "all=a almost-all=A directory=d reverse=r recursive=R " +
		"classify::=F human-readable=h inode=i numeric-uid-gid=n dereference=L size=s color:: time-style: full-time group-directories-first quote-name=Q", Status: 2})
	if !ok {
		return status
	}
	if f.Has("s", "Q", "m", "X", "H") {
		return c.Usage(2, "the options -s, -Q, -m, -X and -H are not available in the wasm shell")
	}
	l := &lister{c: c, f: f, dirsFirst: f.Has("group-directories-first")}
	switch style, _ := f.Get("time-style"); {
	case f.Has("full-time") && !f.Has("time-style"), style == "full-iso":
		l.times = "%Y-%m-%d %H:%M:%S.%N %z"
	case style == "long-iso":
		l.times = "%Y-%m-%d %H:%M"
	case strings.HasPrefix(style, "+"):
		l.times = style[1:]
	case style == "" || style == "locale" || style == "posix-long-iso":
	default:
		return c.Usage(2, "the time style '%s' is not available in the wasm shell", style)
	}
	if f.Has("full-time") {
		l.f = append(l.f, tool.Flag{Name: "l"})
		f = l.f
	}
	if len(names) == 0 {
		names = []string{"."}
	}
	var files, dirs []entry
	for _, n := range names {
		fi, err := c.Lstat(n)
		if err == nil && fi.Mode()&fs.ModeSymlink != 0 && (f.Has("L") || !f.Has("l", "d", "F")) {
			if t, e := c.Stat(n); e == nil {
				fi = t
			}
		}
		if err != nil {
			c.Errorf("cannot access '%s': %s", n, tool.Text(err))
			l.status = 2
			continue
		}
		if fi.IsDir() && !f.Has("d") {
			dirs = append(dirs, entry{name: n, FileInfo: fi})
			continue
		}
		files = append(files, l.entry(n, n, fi))
	}
	l.sort(files)
	l.sort(dirs)
	l.print(files)
	l.shown = len(files) > 0
	for _, d := range dirs {
		l.dir(d.name, len(names) > 1 || f.Has("R"))
	}
	return l.status
}

func (l *lister) entry(name, file string, fi fs.FileInfo) entry {
	e := entry{name: name, FileInfo: fi}
	if fi.Mode()&fs.ModeSymlink != 0 {
		e.target, _ = os.Readlink(l.c.Path(file))
	}
	return e
}

func (l *lister) dir(name string, titled bool) {
	c := l.c
	list, err := os.ReadDir(c.Path(name))
	if err != nil {
		c.Errorf("cannot open directory '%s': %s", name, tool.Text(err))
		l.status = 2
		return
	}
	if titled {
		if l.shown {
			c.Out.WriteByte('\n')
		}
		c.Out.WriteString(name + ":\n")
	}
	l.shown = true
	var entries []entry
	names := []string{}
	if l.f.Has("a") && l.f.Last("a", "A") == "a" {
		names = append(names, ".", "..")
	}
	for _, e := range list {
		if e.Name()[0] != '.' || l.f.Has("a", "A") {
			names = append(names, e.Name())
		}
	}
	for _, n := range names {
		file := strings.TrimSuffix(name, "/") + "/" + n
		fi, err := c.Lstat(file)
		if err == nil && l.f.Has("L") {
			if t, e := c.Stat(file); e == nil {
				fi = t
			}
		}
		if err != nil {
			c.Errorf("cannot access '%s': %s", file, tool.Text(err))
			l.status = max(l.status, 1)
			continue
		}
		entries = append(entries, l.entry(n, file, fi))
	}
	l.sort(entries)
	if l.f.Has("l", "n", "g", "o") {
		fmt.Fprintf(c.Out, "total %s\n", l.total(entries))
	}
	l.print(entries)
	if l.f.Has("R") {
		for _, e := range entries {
			if e.IsDir() && e.name != "." && e.name != ".." {
				l.dir(strings.TrimSuffix(name, "/")+"/"+e.name, true)
			}
		}
	}
}

func (l *lister) total(entries []entry) string {
	var n int64
	for _, e := range entries {
		n += blocks(e) / 2
	}
	if l.f.Has("h") {
		return human(n * 1024)
	}
	return strconv.FormatInt(n, 10)
}

// blocks are the 512 bytes that a file takes. The guest does not see a disk, so it
// is what a file system with blocks of 4 KiB would need.
func blocks(fi fs.FileInfo) int64 {
	switch {
	case fi.IsDir():
		return 8
	case fi.Mode().IsRegular():
		return (fi.Size() + 4095) / 4096 * 8
	}
	return 0
}

func (l *lister) sort(list []entry) {
	if l.f.Has("U") {
		return
	}
	slices.SortStableFunc(list, func(a, b entry) int {
		if l.dirsFirst && a.IsDir() != b.IsDir() {
			if a.IsDir() {
				return -1
			}
			return 1
		}
		n := 0
		switch l.f.Last("t", "S", "v") {
		case "t":
			n = b.ModTime().Compare(a.ModTime())
		case "S":
			n = int(max(-1, min(1, b.Size()-a.Size())))
		case "v":
			n = compareVersions(a.name, b.name)
		}
		if n == 0 {
			n = strings.Compare(a.name, b.name)
		}
		if l.f.Has("r") {
			return -n
		}
		return n
	})
}

func (l *lister) print(list []entry) {
	if !l.f.Has("l", "n", "g", "o") {
		for _, e := range list {
			if l.f.Has("i") {
				fmt.Fprintf(l.c.Out, "%d ", identity(e).ino)
			}
			l.c.Out.WriteString(e.name + l.class(e) + "\n")
		}
		return
	}
	rows := make([][]string, len(list))
	var width [6]int
	for i, e := range list {
		id := identity(e)
		size := strconv.FormatInt(e.Size(), 10)
		if l.f.Has("h") {
			size = human(e.Size())
		}
		uid, gid := id.owner, id.group
		if l.f.Has("n") {
			uid, gid = strconv.Itoa(id.uid), strconv.Itoa(id.gid)
		}
		rows[i] = []string{modeString(e.Mode()), strconv.Itoa(id.links), uid, gid, size, l.time(e.ModTime())}
		for j, s := range rows[i] {
			width[j] = max(width[j], len(s))
		}
	}
	for i, e := range list {
		r := rows[i]
		if l.f.Has("i") {
			fmt.Fprintf(l.c.Out, "%d ", identity(e).ino)
		}
		fmt.Fprintf(l.c.Out, "%s %*s", r[0], width[1], r[1])
		if !l.f.Has("g") {
			fmt.Fprintf(l.c.Out, " %-*s", width[2], r[2])
		}
		if !l.f.Has("o") {
			fmt.Fprintf(l.c.Out, " %-*s", width[3], r[3])
		}
		fmt.Fprintf(l.c.Out, " %*s %s %s", width[4], r[4], r[5], e.name)
		if e.target != "" {
			l.c.Out.WriteString(" -> " + e.target)
		} else {
			l.c.Out.WriteString(l.class(e))
		}
		l.c.Out.WriteByte('\n')
	}
}

func (l *lister) class(e entry) string {
	m := e.Mode()
	switch {
	case m.IsDir() && l.f.Has("F", "p"):
		return "/"
	case !l.f.Has("F"):
	case m&fs.ModeSymlink != 0:
		return "@"
	case m&fs.ModeNamedPipe != 0:
		return "|"
	case m.IsRegular() && m&0o111 != 0:
		return "*"
	}
	return ""
}

func (l *lister) time(t time.Time) string {
	if l.times != "" {
		return tool.Strftime(l.times, t.In(tool.Zone(l.c)))
	}
	return listTime(l.c, t)
}

func listTime(c *tool.Call, t time.Time) string {
	t = t.In(tool.Zone(c))
	if now := time.Now(); t.After(now) || now.Sub(t) > 365*24*time.Hour/2 {
		return tool.Strftime("%b %e  %Y", t)
	}
	return tool.Strftime("%b %e %H:%M", t)
}

// human is a size as ls -h has it: rounded up, with at most three digits.
func human(n int64) string {
	if n < 1024 {
		return strconv.FormatInt(n, 10)
	}
	v := float64(n)
	for _, u := range "KMGTPE" {
		v /= 1024
		if v < 9.95 {
			up := float64(int64(v*10)) / 10
			if up < v {
				up += 0.1
			}
			if up < 9.95 {
				return fmt.Sprintf("%.1f%c", up, u)
			}
		}
		up := int64(v)
		if float64(up) < v {
			up++
		}
		if up < 1024 || u == 'E' {
			return fmt.Sprintf("%d%c", up, u)
		}
	}
	return ""
}
