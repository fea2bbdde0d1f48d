package tool

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"strings"
	"testing"
)

func TestRunEndsAtABrokenPipe(t *testing.T) {
	r, w := io.Pipe()
	r.Close()
	status := Run(t.Context(), func(_ context.Context, c *Call) int {
		for {
			c.Out.WriteString("y\n")
		}
	}, &Call{Args: []string{"yes"}, Stdout: w})
	if status != StatusPipe {
		t.Errorf("status %d", status)
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	status := Run(ctx, func(_ context.Context, c *Call) int {
		io.Copy(io.Discard, c.Stdin)
		return 0
	}, &Call{Args: []string{"cat"}, Stdin: strings.NewReader("x")})
	if status != 137 {
		t.Errorf("status %d", status)
	}
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, errors.New("no space") }

func TestRunTellsWhatCouldNotBeWritten(t *testing.T) {
	var errs bytes.Buffer
	status := Run(t.Context(), func(_ context.Context, c *Call) int {
		c.Out.WriteString("x")
		return 0
	}, &Call{Args: []string{"echo"}, Stdout: broken{}, Stderr: &errs})
	if status != 1 || errs.String() != "echo: write error: no space\n" {
		t.Errorf("status %d, %q", status, &errs)
	}
}

func TestParse(t *testing.T) {
	for _, c := range []struct {
		args      string
		options   Options
		flags     string
		operands  string
		complains string
	}{
		{"-ab x -c y", Options{Short: "abc:"}, "a= b= c=y", "x", ""},
		{"-cy -- -a", Options{Short: "ac:"}, "c=y", "-a", ""},
		{"x -a", Options{Short: "+a"}, "", "x -a", ""},
		{"--al --num=3 --opt --opt=v", Options{Long: "all=a number:=n opt::=o", Short: "a"}, "a= n=3 o= o=v", "", ""},
		{"-I -Ix", Options{Short: "I::"}, "I= I=x", "", ""},
		{"-z", Options{Short: "a"}, "", "", "invalid option -- 'z'"},
		{"--z", Options{Long: "all=a"}, "", "", "unrecognized option '--z'"},
		{"--a", Options{Long: "all=a also=b"}, "", "", "option '--a' is ambiguous"},
		{"-c", Options{Short: "c:"}, "", "", "option requires an argument -- 'c'"},
		{"--all=x", Options{Long: "all=a"}, "", "", "option '--all' doesn't allow an argument"},
		{"--num", Options{Long: "num:=n"}, "", "", "option '--num' requires an argument"},
	} {
		var errs bytes.Buffer
		call := &Call{Args: append([]string{"t"}, strings.Fields(c.args)...), Stderr: &errs}
		flags, operands, status, ok := call.Parse(c.options)
		var got []string
		for _, f := range flags {
			got = append(got, f.Name+"="+f.Value)
		}
		if strings.Join(got, " ") != c.flags || strings.Join(operands, " ") != c.operands || ok != (c.complains == "") || !ok && status != 1 {
			t.Errorf("%s: %v %v %d", c.args, got, operands, status)
		}
		if c.complains != "" && !strings.HasPrefix(errs.String(), "t: "+c.complains+"\n") {
			t.Errorf("%s: %q", c.args, &errs)
		}
	}
}

func FuzzPrintf(f *testing.F) {
	for _, s := range []string{"%s\n", "%-5.2f|%+d", "%*.*s", "%q %b", "\\101\\x42\\u00e9", "%c%%", "%010d", "%#x", "%.3e"} {
		f.Add(s, "a", "-7")
	}
	f.Fuzz(func(t *testing.T, format, a, b string) {
		if len(format) > 50 {
			return
		}
		var out, errs bytes.Buffer
		c := &Call{Args: []string{"printf"}, Stderr: &errs}
		if status := Printf(c, &out, format, []string{a, b}); status != 0 && errs.Len() == 0 {
			t.Errorf("%q: status %d without a word", format, status)
		}
		if strings.Contains(out.String(), "%!") && !strings.Contains(format+a+b, "!") {
			t.Errorf("%q of %q, %q: %q", format, a, b, &out)
		}
	})
}

func FuzzParseMode(f *testing.F) {
	for _, s := range []string{"755", "u+x,go-w", "a=rwX", "+t", "u=g", "g+s", "-x", "u+rwx-x"} {
		f.Add(s, uint32(0o644), false)
	}
	f.Fuzz(func(t *testing.T, s string, old uint32, dir bool) {
		old &= 0o7777
		m, err := ParseMode(s, FromBits(old), dir, 0o022)
		if err != nil {
			return
		}
		if b := Bits(m); b > 0o7777 || FromBits(b) != m || m&^(fs.ModePerm|fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky) != 0 {
			t.Errorf("%q of %o: %v", s, old, m)
		}
	})
}
