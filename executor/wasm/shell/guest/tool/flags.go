package tool

import (
	"fmt"
	"strings"
)

// Flag is one option as it was given.
type Flag struct {
	Name  string // one letter, or the long name if the option has no letter
	Value string
	At    int // how many operands were before it
}

// Flags are the options of a call in the order in which they were given.
type Flags []Flag

// Has tells whether any of the options was given.
func (f Flags) Has(names ...string) bool {
	for _, x := range f {
		for _, n := range names {
			if x.Name == n {
				return true
			}
		}
	}
	return false
}

// Get returns the last value of an option, and whether it was given.
func (f Flags) Get(name string) (string, bool) {
	for i := len(f) - 1; i >= 0; i-- {
		if f[i].Name == name {
			return f[i].Value, true
		}
	}
	return "", false
}

// Last returns which of the options was given last, empty if none was.
func (f Flags) Last(names ...string) string {
	for i := len(f) - 1; i >= 0; i-- {
		for _, n := range names {
			if f[i].Name == n {
				return n
			}
		}
	}
	return ""
}

// Options are those that a tool takes, in the notation of getopt. All that is
// not in them is an error.
type Options struct {
	// Short are letters, each followed by a colon if it has a value, or by two
	// if it may have one. A leading + ends the options at the first operand.
	Short string
	// Long are words, NAME or NAME=L with the letter that it stands for; a
	// colon behind the name says that it has a value, two that it may have one.
	Long string
	// Status is the exit status for wrong options. 0 means 1.
	Status int
}

// Parse splits the call's arguments into options and operands. If ok is false
// it has written what is wrong and the tool ends with status.
func (c *Call) Parse(o Options) (flags Flags, operands []string, status int, ok bool) {
	status = max(o.Status, 1)
	short, stopAtOperand := strings.CutPrefix(o.Short, "+")
	args := c.Args[1:]
	for len(args) > 0 {
		a := args[0]
		args = args[1:]
		switch {
		case a == "--":
			return flags, append(operands, args...), 0, true
		case strings.HasPrefix(a, "--"):
			if a == "--version" && !strings.Contains(" "+o.Long+" ", " version ") {
				// Scripts look for "GNU" there to choose their options.
				fmt.Fprintf(c.Out, "%s (wasm shell of sandboxd, with options of GNU %s)\n", c.Args[0], c.Args[0])
				return nil, nil, 0, false
			}
			f, used, err := long(o.Long, a[2:], args)
			if err != nil {
				return nil, nil, c.Usage(status, "%v", err), false
			}
			f.At = len(operands)
			flags = append(flags, f)
			args = args[used:]
		case len(a) > 1 && a[0] == '-':
			var used int
			var err error
			from := len(flags)
			if flags, used, err = cluster(flags, short, a[1:], args); err != nil {
				return nil, nil, c.Usage(status, "%v", err), false
			}
			for i := range flags[from:] {
				flags[from+i].At = len(operands)
			}
			args = args[used:]
		default:
			operands = append(operands, a)
			if stopAtOperand {
				return flags, append(operands, args...), 0, true
			}
		}
	}
	return flags, operands, 0, true
}

func cluster(flags Flags, short, letters string, rest []string) (Flags, int, error) {
	for i := 0; i < len(letters); i++ {
		at := strings.IndexByte(short, letters[i])
		if at < 0 || letters[i] == ':' {
			return nil, 0, fmt.Errorf("invalid option -- '%c'", letters[i])
		}
		f := Flag{Name: letters[i : i+1]}
		if at+1 < len(short) && short[at+1] == ':' {
			optional := at+2 < len(short) && short[at+2] == ':'
			if f.Value = letters[i+1:]; f.Value != "" || optional {
				return append(flags, f), 0, nil
			}
			if len(rest) == 0 {
				return nil, 0, fmt.Errorf("option requires an argument -- '%c'", letters[i])
			}
			f.Value = rest[0]
			return append(flags, f), 1, nil
		}
		flags = append(flags, f)
	}
	return flags, 0, nil
}

func long(words, arg string, rest []string) (Flag, int, error) {
	name, value, given := strings.Cut(arg, "=")
	var found []string
	for _, w := range strings.Fields(words) {
		n, _, _ := strings.Cut(w, "=")
		n = strings.TrimRight(n, ":")
		if n == name {
			found = []string{w}
			break
		}
		if strings.HasPrefix(n, name) {
			found = append(found, w)
		}
	}
	switch len(found) {
	case 0:
		return Flag{}, 0, fmt.Errorf("unrecognized option '--%s'", name)
	case 1:
	default:
		return Flag{}, 0, fmt.Errorf("option '--%s' is ambiguous", name)
	}
	w, letter, _ := strings.Cut(found[0], "=")
	full := strings.TrimRight(w, ":")
	f := Flag{Name: letter, Value: value}
	if letter == "" {
		f.Name = full
	}
	switch {
	case strings.HasSuffix(w, "::"):
		return f, 0, nil
	case strings.HasSuffix(w, ":"):
		if given {
			return f, 0, nil
		}
		if len(rest) == 0 {
			return Flag{}, 0, fmt.Errorf("option '--%s' requires an argument", full)
		}
		f.Value = rest[0]
		return f, 1, nil
	case given:
		return Flag{}, 0, fmt.Errorf("option '--%s' doesn't allow an argument", full)
	}
	return f, 0, nil
}
