package sed

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/tool"
)

func FuzzSed(f *testing.F) {
	for _, s := range []string{"s/a/[&]/g", "1!G;h;$!d", ":a;N;$!ba;s/\\n/,/g", "/x/,/y/{p;d}", "y/abc/xyz/", "a\\\ntext", "s|\\(.\\)\\1|\\U\\1\\E|2p", "$!N;P;D", "2q5", "/a/I,+1d", "s/x*/-/g", "0,/b/s//c/", "l 5", "1~2c x"} {
		f.Add(s, "a\nbb\nx\nab\ny\n", true)
	}
	f.Fuzz(func(t *testing.T, script, in string, extended bool) {
		if len(script) > 60 || len(in) > 200 || strings.ContainsAny(script, "wWrR") {
			return // files are not of interest, nor is what takes long
		}
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		var out, errs bytes.Buffer
		args := []string{"sed", "-e", script}
		if extended {
			args = append(args, "-E")
		}
		c := &tool.Call{Args: args, Dir: t.TempDir(), Stdin: strings.NewReader(in), Stdout: &out, Stderr: &errs, Proc: tool.NewProcess()}
		status := tool.Run(ctx, Run, c)
		if ctx.Err() == nil && status == 1 && errs.Len() == 0 && !strings.ContainsAny(script, "qQ") {
			t.Errorf("%q: status %d without a word", script, status)
		}
	})
}
