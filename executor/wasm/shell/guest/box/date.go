package box

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/tool"
)

// zone is the one of TZ, as far as it needs no database: UTC and fixed offsets.
func zone(c *tool.Call) *time.Location {
	tz := strings.TrimPrefix(c.Getenv("TZ"), ":")
	if z, err := fixedZone(tz); err == nil {
		return z
	}
	return time.UTC
}

// fixedZone reads a TZ such as CET-1 or <+0530>-5:30. Names of a database and rules of
// summer time are not known here.
func fixedZone(tz string) (*time.Location, error) {
	if tz == "" || tz == "UTC" || tz == "UTC0" || tz == "GMT" || tz == "Etc/UTC" {
		return time.UTC, nil
	}
	name := strings.TrimRight(tz, "+-0123456789:")
	if strings.HasPrefix(tz, "<") {
		end := strings.IndexByte(tz, '>')
		if end < 0 {
			return nil, errDate
		}
		name = tz[:end+1]
	}
	offset := tz[len(name):]
	if name == "" || offset == "" {
		return nil, errDate
	}
	sign := -1
	if offset[0] == '-' {
		sign = 1
	}
	h, m, _ := strings.Cut(strings.TrimLeft(offset, "+-"), ":")
	hours, err := strconv.Atoi(h)
	if err != nil || hours > 24 {
		return nil, errDate
	}
	minutes := 0
	if m != "" {
		if minutes, err = strconv.Atoi(m); err != nil || minutes > 59 {
			return nil, errDate
		}
	}
	return time.FixedZone(strings.Trim(name, "<>"), sign*(hours*3600+minutes*60)), nil
}

var errDate = errors.New("invalid date")

// layouts are the forms of an absolute date that are understood.
var layouts = []string{
	"2006-01-02T15:04:05.999999999Z07:00", "2006-01-02T15:04:05.999999999", "2006-01-02 15:04:05.999999999Z07:00", "2006-01-02 15:04:05.999999999 Z07:00",
	"2006-01-02 15:04:05.999999999 -0700", "2006-01-02 15:04:05.999999999 MST", "2006-01-02 15:04:05.999999999", "2006-01-02 15:04 MST", "2006-01-02T15:04Z07:00",
	"2006-01-02T15:04", "2006-01-02 15:04", "2006-01-02", "20060102 15:04:05", "20060102 15:04", "20060102", "Mon, 2 Jan 2006 15:04:05 -0700", "Mon, 2 Jan 2006 15:04:05 MST",
	"Mon Jan 2 15:04:05 MST 2006", "Mon Jan 2 15:04:05 2006", "Mon Jan 2 15:04:05 2006 -0700", "Jan 2 2006", "Jan 2, 2006", "2 Jan 2006", "Jan 2 2006 15:04:05", "2 Jan 2006 15:04:05",
}

// parseDate reads what date -d and touch -d understand here: @SECONDS, now, today,
// yesterday, tomorrow, an absolute date, and N units ago or ahead behind either.
func parseDate(s string, now time.Time, loc *time.Location) (time.Time, error) {
	s = strings.Join(strings.Fields(s), " ")
	if sec, ok := strings.CutPrefix(s, "@"); ok {
		whole, frac, _ := strings.Cut(sec, ".")
		n, err := strconv.ParseInt(whole, 10, 64)
		if err != nil || n > 1<<55 || n < -1<<55 {
			return time.Time{}, errDate
		}
		var ns int64
		if frac != "" {
			if ns, err = strconv.ParseInt((frac + "000000000")[:9], 10, 64); err != nil {
				return time.Time{}, errDate
			}
		}
		return time.Unix(n, ns).In(loc), nil
	}
	words := strings.Fields(s)
	for cut := len(words); cut >= 0; cut-- {
		t, err := parseBase(strings.Join(words[:cut], " "), now, loc)
		if err != nil {
			continue
		}
		if t, err = shift(t, words[cut:]); err == nil {
			return t, nil
		}
	}
	return time.Time{}, errDate
}

func parseBase(s string, now time.Time, loc *time.Location) (time.Time, error) {
	now = now.In(loc)
	switch strings.ToLower(s) {
	case "", "now", "today":
		return now, nil
	case "yesterday":
		return now.AddDate(0, 0, -1), nil
	case "tomorrow":
		return now.AddDate(0, 0, 1), nil
	}
	for _, l := range layouts {
		if t, err := time.ParseInLocation(l, s, loc); err == nil {
			if name, _ := t.Zone(); name != "" && strings.Contains(l, "MST") && name != "UTC" && name != "GMT" {
				return time.Time{}, errDate
			}
			return t.In(loc), nil
		}
	}
	return time.Time{}, errDate
}

// shift adds what is written as "2 days ago", "+1 week" or "next month".
func shift(t time.Time, words []string) (time.Time, error) {
	for len(words) > 0 {
		n := 1
		switch w := strings.ToLower(words[0]); w {
		case "next":
			words = words[1:]
		case "last":
			n, words = -1, words[1:]
		default:
			if k, err := strconv.Atoi(w); err == nil {
				n, words = k, words[1:]
			}
		}
		if len(words) == 0 || n > 1<<31 || n < -1<<31 {
			return t, errDate
		}
		unit := strings.TrimSuffix(strings.ToLower(words[0]), "s")
		words = words[1:]
		if len(words) > 0 && strings.EqualFold(words[0], "ago") {
			n, words = -n, words[1:]
		}
		switch unit {
		case "sec", "second":
			t = t.Add(time.Duration(n) * time.Second)
		case "min", "minute":
			t = t.Add(time.Duration(n) * time.Minute)
		case "hour":
			t = t.Add(time.Duration(n) * time.Hour)
		case "day":
			t = t.AddDate(0, 0, n)
		case "week":
			t = t.AddDate(0, 0, 7*n)
		case "fortnight":
			t = t.AddDate(0, 0, 14*n)
		case "month":
			t = t.AddDate(0, n, 0)
		case "year":
			t = t.AddDate(n, 0, 0)
		default:
			return t, errDate
		}
	}
	return t, nil
}

// parseStamp reads touch -t: [[CC]YY]MMDDhhmm[.ss].
func parseStamp(s string, now time.Time, loc *time.Location) (time.Time, error) {
	layout := map[int]string{8: "01021504", 10: "0601021504", 12: "200601021504"}
	digits, sec, dot := strings.Cut(s, ".")
	l := layout[len(digits)]
	if l == "" || dot && len(sec) != 2 {
		return time.Time{}, errDate
	}
	if dot {
		l += "05"
		digits += sec
	}
	t, err := time.ParseInLocation(l, digits, loc)
	if err == nil && !strings.Contains(l, "06") {
		t = t.AddDate(now.In(loc).Year(), 0, 0)
	}
	return t, err
}

func date(_ context.Context, c *tool.Call) int {
	f, args, status, ok := c.Parse(tool.Options{Short: "ud:r:RI::f:s:",
		Long: "utc=u universal=u date:=d reference:=r rfc-email=R rfc-2822=R iso-8601::=I rfc-3339: set:=s file:=f"})
	if !ok {
		return status
	}
	if f.Has("s", "f") {
		return c.Usage(1, "setting the time, and the option -f, are not available in the wasm shell")
	}
	loc := zone(c)
	if tz := c.Getenv("TZ"); tz != "" && !f.Has("u") {
		if _, err := fixedZone(strings.TrimPrefix(tz, ":")); err != nil {
			return c.Fail("the time zone '%s' is not available in the wasm shell: only UTC and fixed offsets as in CET-1 are", tz)
		}
	}
	if f.Has("u") {
		loc = time.UTC
	}
	t := time.Now().In(loc)
	if s, given := f.Get("d"); given {
		var err error
		if t, err = parseDate(s, t, loc); err != nil {
			return c.Fail("invalid date '%s'", s)
		}
	}
	if n, given := f.Get("r"); given {
		fi, err := c.Stat(n)
		if err != nil {
			return c.Fail("%s: %s", n, tool.Text(err))
		}
		t = fi.ModTime().In(loc)
	}
	format := "%a %b %e %H:%M:%S %Z %Y"
	if f.Has("R") {
		format = "%a, %d %b %Y %H:%M:%S %z"
	}
	for _, iso := range []string{"I", "rfc-3339"} {
		v, given := f.Get(iso)
		if !given {
			continue
		}
		sep := map[string]string{"I": "T", "rfc-3339": " "}[iso]
		switch v {
		case "", "date":
			format = "%Y-%m-%d"
		case "hours":
			format = "%Y-%m-%d" + sep + "%H%:z"
		case "minutes":
			format = "%Y-%m-%d" + sep + "%H:%M%:z"
		case "seconds":
			format = "%Y-%m-%d" + sep + "%H:%M:%S%:z"
		case "ns":
			format = "%Y-%m-%d" + sep + "%H:%M:%S,%N%:z"
		default:
			return c.Usage(1, "invalid argument '%s' for '--%s'", v, iso)
		}
	}
	if len(args) > 1 {
		return c.Usage(1, "extra operand '%s'", args[1])
	}
	if len(args) == 1 {
		if args[0] == "" || args[0][0] != '+' {
			return c.Fail("invalid date '%s'", args[0])
		}
		format = args[0][1:]
	}
	fmt.Fprintln(c.Out, strftime(format, t))
	return 0
}

// strftime formats as C's, with GNU's flags - _ 0 ^ and a width.
func strftime(format string, t time.Time) string {
	var b strings.Builder
	for i := 0; i < len(format); i++ {
		if format[i] != '%' || i+1 == len(format) {
			b.WriteByte(format[i])
			continue
		}
		start := i
		i++
		var flag byte
		upper := false
		for i < len(format) && strings.IndexByte("-_0^", format[i]) >= 0 {
			if format[i] == '^' {
				upper = true
			} else {
				flag = format[i]
			}
			i++
		}
		width := 0
		for i < len(format) && format[i] >= '0' && format[i] <= '9' && width < 1000 {
			width = width*10 + int(format[i]-'0')
			i++
		}
		colons := 0
		for i < len(format) && format[i] == ':' && colons < 2 {
			colons++
			i++
		}
		if i == len(format) {
			b.WriteString(format[start:])
			break
		}
		s, ok := field(format[i], t, flag, width, colons)
		if !ok {
			s = format[start : i+1]
		}
		if upper {
			s = strings.ToUpper(s)
		}
		b.WriteString(s)
	}
	return b.String()
}

// field is one conversion of strftime.
func field(verb byte, t time.Time, flag byte, width, colons int) (string, bool) {
	num := func(n, digits int, fill byte) (string, bool) {
		switch flag {
		case '-':
			return strconv.Itoa(n), true
		case '_':
			fill = ' '
		case '0':
			fill = '0'
		}
		s := strconv.Itoa(n)
		return strings.Repeat(string(fill), max(0, max(digits, width)-len(s))) + s, true
	}
	text := func(s string) (string, bool) { return strings.Repeat(" ", max(0, width-len(s))) + s, true }
	hour12 := (t.Hour()+11)%12 + 1
	year, week := t.ISOWeek()
	switch verb {
	case '%':
		return "%", true
	case 'n':
		return "\n", true
	case 't':
		return "\t", true
	case 'Y':
		return num(t.Year(), 1, '0')
	case 'C':
		return num(t.Year()/100, 2, '0')
	case 'y':
		return num(t.Year()%100, 2, '0')
	case 'm':
		return num(int(t.Month()), 2, '0')
	case 'd':
		return num(t.Day(), 2, '0')
	case 'e':
		return num(t.Day(), 2, ' ')
	case 'H':
		return num(t.Hour(), 2, '0')
	case 'k':
		return num(t.Hour(), 2, ' ')
	case 'I':
		return num(hour12, 2, '0')
	case 'l':
		return num(hour12, 2, ' ')
	case 'M':
		return num(t.Minute(), 2, '0')
	case 'S':
		return num(t.Second(), 2, '0')
	case 'N':
		s := fmt.Sprintf("%09d", t.Nanosecond())
		if width > 0 && width < 9 {
			s = s[:width]
		}
		return s, true
	case 's':
		return strconv.FormatInt(t.Unix(), 10), true
	case 'j':
		return num(t.YearDay(), 3, '0')
	case 'u':
		return num((int(t.Weekday())+6)%7+1, 1, '0')
	case 'w':
		return num(int(t.Weekday()), 1, '0')
	case 'U':
		return num((t.YearDay()+6-int(t.Weekday()))/7, 2, '0')
	case 'W':
		return num((t.YearDay()+6-(int(t.Weekday())+6)%7)/7, 2, '0')
	case 'V':
		return num(week, 2, '0')
	case 'G':
		return num(year, 1, '0')
	case 'g':
		return num(year%100, 2, '0')
	case 'q':
		return num((int(t.Month())+2)/3, 1, '0')
	case 'a':
		return text(t.Weekday().String()[:3])
	case 'A':
		return text(t.Weekday().String())
	case 'b', 'h':
		return text(t.Month().String()[:3])
	case 'B':
		return text(t.Month().String())
	case 'p':
		return text(t.Format("PM"))
	case 'P':
		return text(t.Format("pm"))
	case 'Z':
		return text(t.Format("MST"))
	case 'z':
		switch colons {
		case 0:
			return t.Format("-0700"), true
		case 1:
			return t.Format("-07:00"), true
		}
		return t.Format("-07:00:00"), true
	}
	if composed, ok := composites[verb]; ok {
		return text(strftime(composed, t))
	}
	return "", false
}

// composites are the conversions that stand for others.
var composites = map[byte]string{
	'F': "%Y-%m-%d", 'T': "%H:%M:%S", 'R': "%H:%M", 'D': "%m/%d/%y", 'c': "%a %b %e %H:%M:%S %Y", 'x': "%m/%d/%y", 'X': "%H:%M:%S", 'r': "%I:%M:%S %p",
}
