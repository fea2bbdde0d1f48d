package box

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/tool"
)

// ordering is how one key, or all of a line, is compared.
type ordering struct {
	kind                                              byte // 0, or n, g, h, M, V
	blanks, blanksEnd, dict, fold, printable, reverse bool
	given                                             bool // any option at all
}

// option applies one letter, and tells whether there is such.
func (o *ordering) option(l byte, ofEnd bool) bool {
	switch l {
	case 'n', 'g', 'h', 'M', 'V':
		o.kind = l
	case 'b':
		if ofEnd {
			o.blanksEnd = true
		} else {
			o.blanks = true
		}
	case 'd':
		o.dict = true
	case 'f':
		o.fold = true
	case 'i':
		o.printable = true
	case 'r':
		o.reverse = true
	default:
		return false
	}
	o.given = true
	return true
}

// sortKey is the part of a line from one position to another, both counted from 1; a
// toField of 0 is the end of the line, a toChar of 0 the end of the field.
type sortKey struct {
	ordering
	fromField, fromChar, toField, toChar int
}

func parseKey(s string) (sortKey, error) {
	k := sortKey{fromChar: 1}
	from, to, two := strings.Cut(s, ",")
	letters, err := position(from, &k.fromField, &k.fromChar)
	if err != nil || k.fromField == 0 || k.fromChar == 0 {
		return k, fmt.Errorf("invalid field specification '%s'", s)
	}
	for i := range len(letters) {
		if !k.option(letters[i], false) {
			return k, fmt.Errorf("stray character in field spec: invalid field specification '%s'", s)
		}
	}
	if !two {
		return k, nil
	}
	if letters, err = position(to, &k.toField, &k.toChar); err != nil || k.toField == 0 {
		return k, fmt.Errorf("invalid field specification '%s'", s)
	}
	for i := range len(letters) {
		if !k.option(letters[i], true) {
			return k, fmt.Errorf("stray character in field spec: invalid field specification '%s'", s)
		}
	}
	return k, nil
}

func position(s string, field, char *int) (letters string, err error) {
	rest := strings.TrimLeft(s, "0123456789")
	if *field, err = strconv.Atoi(s[:len(s)-len(rest)]); err != nil {
		return "", err
	}
	if strings.HasPrefix(rest, ".") {
		s = rest[1:]
		rest = strings.TrimLeft(s, "0123456789")
		*char, err = strconv.Atoi(s[:len(s)-len(rest)])
	}
	return rest, err
}

// part cuts the key out of a line.
func (k *sortKey) part(line string, sep int) string {
	start := fieldStart(line, k.fromField, sep)
	if k.blanks {
		start += blankPrefix(line[start:])
	}
	start = min(len(line), start+k.fromChar-1)
	if k.toField == 0 {
		return line[start:]
	}
	var end int
	if k.toChar == 0 {
		end = fieldEnd(line, k.toField, sep)
	} else {
		end = fieldStart(line, k.toField, sep)
		if k.blanksEnd {
			end += blankPrefix(line[end:])
		}
		end = min(len(line), end+k.toChar)
	}
	return line[start:max(start, end)]
}

func blankPrefix(s string) int { return len(s) - len(strings.TrimLeft(s, " \t")) }

// fieldStart is where the field begins: with a separator behind it, and else with the
// blanks before its first other character.
func fieldStart(line string, field, sep int) int {
	at := 0
	for ; field > 1 && at < len(line); field-- {
		if sep >= 0 {
			i := strings.IndexByte(line[at:], byte(sep))
			if i < 0 {
				return len(line)
			}
			at += i + 1
			continue
		}
		at += blankPrefix(line[at:])
		i := strings.IndexAny(line[at:], " \t")
		if i < 0 {
			return len(line)
		}
		at += i
	}
	return at
}

func fieldEnd(line string, field, sep int) int {
	at := fieldStart(line, field, sep)
	if sep >= 0 {
		if i := strings.IndexByte(line[at:], byte(sep)); i >= 0 {
			return at + i
		}
		return len(line)
	}
	at += blankPrefix(line[at:])
	if i := strings.IndexAny(line[at:], " \t"); i >= 0 {
		return at + i
	}
	return len(line)
}

func (o *ordering) compare(a, b string) int {
	n := 0
	switch o.kind {
	case 'n':
		n = compareDecimal(a, b)
	case 'g':
		n = compareFloat(a, b)
	case 'h':
		n = compareHuman(a, b)
	case 'M':
		n = month(a) - month(b)
	case 'V':
		n = compareVersions(a, b)
	default:
		n = strings.Compare(o.shown(a), o.shown(b))
	}
	if o.reverse {
		return -n
	}
	return n
}

func (o *ordering) shown(s string) string {
	if !o.dict && !o.fold && !o.printable {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		c := s[i]
		if o.dict && c != ' ' && c != '\t' && !isDigit(c) && !isLetter(c) || o.printable && (c < ' ' || c > '~') {
			continue
		}
		if o.fold && c >= 'a' && c <= 'z' {
			c -= 'a' - 'A'
		}
		b = append(b, c)
	}
	return string(b)
}

// decimal splits off a number as sort -n sees it: blanks, a minus, digits, a point.
func decimal(s string) (negative bool, whole, frac string) {
	s = strings.TrimLeft(s, " \t")
	s, negative = strings.CutPrefix(s, "-")
	rest := strings.TrimLeft(s, "0123456789")
	whole = strings.TrimLeft(s[:len(s)-len(rest)], "0")
	if strings.HasPrefix(rest, ".") {
		frac = rest[1:]
		frac = strings.TrimRight(frac[:len(frac)-len(strings.TrimLeft(frac, "0123456789"))], "0")
	}
	return negative && whole+frac != "", whole, frac
}

func compareDecimal(a, b string) int {
	na, wa, fa := decimal(a)
	nb, wb, fb := decimal(b)
	if na != nb {
		if na {
			return -1
		}
		return 1
	}
	n := cmp.Or(len(wa)-len(wb), strings.Compare(wa, wb), strings.Compare(fa, fb))
	if na {
		return -n
	}
	return n
}

func compareFloat(a, b string) int {
	return cmp.Compare(leadingFloat(a), leadingFloat(b))
}

func leadingFloat(s string) float64 {
	s = strings.TrimLeft(s, " \t")
	for end := len(s); end > 0; end-- {
		if v, err := strconv.ParseFloat(s[:end], 64); err == nil {
			return v
		}
		if end > 64 {
			end = 64
		}
	}
	return 0
}

func compareHuman(a, b string) int {
	unit := func(s string) int {
		negative, whole, frac := decimal(s)
		s = strings.TrimLeft(strings.TrimLeft(s, " \t-"), "0123456789.")
		if whole+frac == "" || s == "" {
			return 0
		}
		n := strings.IndexByte("KMGTPEZY", s[0]&^0x20) + 1
		if negative {
			return -n
		}
		return n
	}
	return cmp.Or(unit(a)-unit(b), compareDecimal(a, b))
}

func month(s string) int {
	s = strings.TrimLeft(s, " \t")
	if len(s) < 3 {
		return 0
	}
	i := strings.Index("JANFEBMARAPRMAYJUNJULAUGSEPOCTNOVDEC", strings.ToUpper(s[:3]))
	if i < 0 || i%3 != 0 {
		return 0
	}
	return i/3 + 1
}

// sorter is one call of sort.
type sorter struct {
	c    *tool.Call
	f    tool.Flags
	keys []sortKey
	sep  int  // between fields; -1 is where blanks begin
	last bool // whole lines decide where keys are equal
	down bool // and do so in reverse
}

func sort(_ context.Context, c *tool.Call) int {
	f, names, status, ok := c.Parse(tool.Options{Short: "bdfgiMhnrVcCmo:suk:t:zS:T:", Status: 2, Long: "ignore-leading-blanks=b dictionary-order=d " +
		"ignore-case=f general-numeric-sort=g ignore-nonprinting=i month-sort=M human-numeric-sort=h numeric-sort=n reverse=r version-sort=V " +
		"check::=c merge=m output:=o stable=s unique=u key:=k field-separator:=t zero-terminated=z buffer-size:=S temporary-directory:=T parallel:"})
	if !ok {
		return status
	}
	s := &sorter{c: c, f: f, sep: -1, last: !f.Has("s", "u")}
	if err := s.options(); err != nil {
		c.Errorf("%v", err)
		return 2
	}
	if f.Has("c", "C") {
		return sortCheck(c, f, names, s.compare)
	}
	all, err := s.read(names)
	if err != nil {
		c.Errorf("cannot read: %v", err)
		return 2
	}
	slices.SortStableFunc(all, s.compare)
	if f.Has("u") {
		all = slices.CompactFunc(all, func(a, b string) bool { return s.compare(a, b) == 0 })
	}
	if err := s.write(all); err != nil {
		c.Errorf("%v", err)
		return 2
	}
	return 0
}

// options reads keys and orderings. A key without an ordering of its own has that of all.
func (s *sorter) options() error {
	var global ordering
	for _, x := range s.f {
		switch x.Name {
		case "k":
			k, err := parseKey(x.Value)
			if err != nil {
				return err
			}
			s.keys = append(s.keys, k)
		case "t":
			switch {
			case x.Value == `\0`:
				s.sep = 0
			case len(x.Value) == 1:
				s.sep = int(x.Value[0])
			case x.Value == "":
				return errString("empty tab")
			default:
				return errorf("multi-character tab '%s'", x.Value)
			}
		default:
			global.option(x.Name[0], false)
		}
	}
	global.blanksEnd = global.blanks
	s.down = global.reverse
	for i := range s.keys {
		if !s.keys[i].given {
			s.keys[i].ordering = global
		}
	}
	if len(s.keys) == 0 {
		s.keys = []sortKey{{ordering: global, fromField: 1, fromChar: 1}}
	}
	return nil
}

func (s *sorter) compare(a, b string) int {
	for i := range s.keys {
		k := &s.keys[i]
		pa, pb := a, b
		if k.fromField > 1 || k.fromChar > 1 || k.toField > 0 || k.blanks {
			pa, pb = k.part(a, s.sep), k.part(b, s.sep)
		}
		if n := k.compare(pa, pb); n != 0 {
			return n
		}
	}
	switch {
	case !s.last:
		return 0
	case s.down:
		return strings.Compare(b, a)
	}
	return strings.Compare(a, b)
}

func (s *sorter) read(names []string) ([]string, error) {
	if len(names) == 0 {
		names = []string{"-"}
	}
	var all []string
	for _, n := range names {
		lines, err := readAll(s.c, n, end(s.f)[0])
		if err != nil {
			return nil, errorf("%s: %s", n, tool.Text(err))
		}
		all = append(all, lines...)
	}
	return all, nil
}

// write writes to standard output, or to the file of -o, which may be one of the inputs:
// they have been read by now.
func (s *sorter) write(all []string) error {
	w := s.c.Out
	if name, given := s.f.Get("o"); given {
		file, err := s.c.Create(name, false)
		if err != nil {
			return errorf("open failed: %s: %s", name, tool.Text(err))
		}
		defer file.Close()
		w = bufio.NewWriter(file)
	}
	for _, l := range all {
		if _, err := w.WriteString(l + end(s.f)); err != nil {
			return errorf("write failed: %s", tool.Text(err))
		}
	}
	if err := w.Flush(); err != nil {
		return errorf("write failed: %s", tool.Text(err))
	}
	return nil
}

func sortCheck(c *tool.Call, f tool.Flags, names []string, compare func(a, b string) int) int {
	if len(names) > 1 {
		return c.Usage(2, "extra operand '%s' not allowed with -c", names[1])
	}
	disorder := 0
	status := c.Each(names, 2, func(name string, r io.Reader) error {
		prev, n := "", 0
		return lines(r, end(f)[0], func(s string, _ bool) bool {
			n++
			if d := 0; n > 1 {
				if d = compare(prev, s); d > 0 || d == 0 && f.Has("u") {
					disorder = 1
					if v, _ := f.Get("c"); f.Has("c") && v != "quiet" && v != "silent" {
						c.Errorf("%s:%d: disorder: %s", name, n, s)
					}
					return false
				}
			}
			prev = s
			return true
		})
	})
	return max(status, disorder)
}
