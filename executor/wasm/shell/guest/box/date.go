package box

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/tool"
)

var errDate = errors.New("invalid date")

// layouts are the forms of an absolute date that are understood.
var layouts = []string{
	"2006-01-02T15:04:05.999999999Z07:00", "2006-01-02T15:04:05.999999999", "2006-01-02 15:04:05.999999999Z07:00", "2006-01-02 15:04:05.999999999 Z07:00",
	"2006-01-02 15:04:05.999999999 -0700", "2006-01-02 15:04 -0700", "2006-01-02 15:04Z07:00", "2006-01-02 15:04:05.999999999 MST", "2006-01-02 15:04:05.999999999", "2006-01-02 15:04 MST", "2006-01-02T15:04Z07:00",
	"2006-01-02T15:04", "2006-01-02 15:04", "2006-01-02", "20060102 15:04:05", "20060102 15:04", "20060102", "Mon, 2 Jan 2006 15:04:05 -0700", "Mon, 2 Jan 2006 15:04:05 MST",
	"Mon Jan 2 15:04:05 MST 2006", "Mon Jan 2 15:04:05 2006", "Mon Jan 2 15:04:05 2006 -0700", "Jan 2 2006", "Jan 2, 2006", "2 Jan 2006", "Jan 2 2006 15:04:05", "2 Jan 2006 15:04:05",
	"1/2/2006", "2006/1/2", "2-Jan-2006", "Jan 2 15:04:05 2006", "January 2 2006", "January 2, 2006", "2 January 2006", "20060102 15:04:05 MST", "20060102 15:04 MST",
}

// times are the forms of a time behind a date.
var times = []string{"15:04:05.999999999", "15:04", "1504", "3:04:05pm", "3:04pm", "3pm"}

// dateAndTime reads a date by one of the layouts, and a time that follows it.
func dateAndTime(s string, now time.Time, loc *time.Location) (time.Time, error) {
	words := strings.Fields(strings.ToLower(s))
	if n := len(words); n > 1 && (words[n-1] == "am" || words[n-1] == "pm") {
		words = append(words[:n-2], words[n-2]+words[n-1])
	}
	if len(words) == 0 {
		return time.Time{}, errDate
	}
	for _, form := range times {
		at, err := time.Parse(form, words[len(words)-1])
		if err != nil {
			continue
		}
		t, err := dayOf(strings.Join(words[:len(words)-1], " "), now, loc)
		if len(words) == 1 && strings.Contains(form, "1504") {
			err = errDate // a number by itself is another thing
		}
		if err == nil {
			return time.Date(t.Year(), t.Month(), t.Day(), at.Hour(), at.Minute(), at.Second(), at.Nanosecond(), loc), nil
		}
	}
	return time.Time{}, errDate
}

// dayOf reads a date without a time; empty is today.
func dayOf(s string, now time.Time, loc *time.Location) (time.Time, error) {
	if days, ok := map[string]int{"": 0, "today": 0, "yesterday": -1, "tomorrow": 1}[s]; ok {
		return now.AddDate(0, 0, days), nil
	}
	for _, l := range layouts {
		if strings.Contains(l, "15") {
			continue
		}
		// Go takes the names of months in any case.
		if t, err := time.ParseInLocation(l, s, loc); err == nil {
			return t, nil
		}
	}
	return time.Time{}, errDate
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
	for i := 0; i+1 < len(words); i++ {
		if words[i] == "-" || words[i] == "+" { // of a number that follows
			words = slices.Replace(words, i, i+2, words[i]+words[i+1])
		}
	}
	for cut := len(words); cut >= 0; cut-- {
		if cut > 0 && cut < len(words) && strings.Contains(words[cut-1], ":") && strings.ContainsAny(words[cut][:1], "+-") {
			continue // GNU's date takes the number for that of a time zone
		}
		t, err := parseBase(strings.Join(words[:cut], " "), now, loc)
		if err != nil {
			continue
		}
		if t, err = shift(t, words[cut:]); err == nil {
			return t, nil
		}
	}
	// The name of the zone may be anywhere behind the date.
	for i, w := range words {
		if i == 0 || !universal[strings.ToUpper(w)] {
			continue
		}
		t, err := parseDate(strings.Join(words[:i], " "), now, time.UTC)
		if err == nil {
			t, err = shift(t, words[i+1:])
		}
		if err != nil { // as in Jan 1 00:00 UTC 2020
			t, err = parseDate(strings.Join(slices.Delete(words, i, i+1), " "), now, time.UTC)
		}
		return t.In(loc), err
	}
	return time.Time{}, errDate
}

var universal = map[string]bool{"UTC": true, "GMT": true, "UT": true, "Z": true}

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
	return dateAndTime(s, now, loc)
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
	loc := tool.Zone(c)
	if tz := c.Getenv("TZ"); tz != "" && !f.Has("u") {
		if _, err := tool.FixedZone(strings.TrimPrefix(tz, ":")); err != nil {
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
	fmt.Fprintln(c.Out, tool.Strftime(format, t))
	return 0
}
