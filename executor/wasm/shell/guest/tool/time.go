package tool

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Zone is the one of TZ, as far as it needs no database: UTC and fixed offsets.
func Zone(c *Call) *time.Location {
	tz := strings.TrimPrefix(c.Getenv("TZ"), ":")
	if z, err := FixedZone(tz); err == nil {
		return z
	}
	return time.UTC
}

// FixedZone reads a TZ such as CET-1 or <+0530>-5:30. Names of a database and rules of
// summer time are not known here.
func FixedZone(tz string) (*time.Location, error) {
	if tz == "" || tz == "UTC" || tz == "UTC0" || tz == "GMT" || tz == "Etc/UTC" {
		return time.UTC, nil
	}
	name := strings.TrimRight(tz, "+-0123456789:")
	if strings.HasPrefix(tz, "<") {
		end := strings.IndexByte(tz, '>')
		if end < 0 {
			return nil, errZone
		}
		name = tz[:end+1]
	}
	offset := tz[len(name):]
	if name == "" || offset == "" {
		return nil, errZone
	}
	sign := -1
	if offset[0] == '-' {
		sign = 1
	}
	h, m, _ := strings.Cut(strings.TrimLeft(offset, "+-"), ":")
	hours, err := strconv.Atoi(h)
	if err != nil || hours > 24 {
		return nil, errZone
	}
	minutes := 0
	if m != "" {
		if minutes, err = strconv.Atoi(m); err != nil || minutes > 59 {
			return nil, errZone
		}
	}
	return time.FixedZone(strings.Trim(name, "<>"), sign*(hours*3600+minutes*60)), nil
}

var errZone = errors.New("invalid time zone")

// Strftime formats as C's, with GNU's flags - _ 0 ^ and a width.
func Strftime(format string, t time.Time) string {
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
		return text(Strftime(composed, t))
	}
	return "", false
}

// composites are the conversions that stand for others.
var composites = map[byte]string{
	'F': "%Y-%m-%d", 'T': "%H:%M:%S", 'R': "%H:%M", 'D': "%m/%d/%y", 'c': "%a %b %e %H:%M:%S %Y", 'x': "%m/%d/%y", 'X': "%H:%M:%S", 'r': "%I:%M:%S %p",
}
