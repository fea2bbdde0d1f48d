package box

import (
	"context"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/tool"
)

// column has what util-linux's does for tables.
func column(_ context.Context, c *tool.Call) int {
	f, names, status, ok := c.Parse(tool.Options{Short: "ts:o:", Long: "table=t separator:=s output-separator:=o"})
	if !ok {
		return status
	}
	if !f.Has("t") {
		return c.Usage(1, "columns without the option -t are not available in the wasm shell")
	}
	between, given := f.Get("o")
	if !given {
		between = "  "
	}
	separators, separated := f.Get("s")
	var rows [][]string
	var widths []int
	status = c.Each(names, 1, func(_ string, r io.Reader) error {
		return lines(r, '\n', func(line string, _ bool) bool {
			if strings.TrimSpace(line) == "" {
				return true
			}
			row := strings.Fields(line)
			if separated {
				row = splitAny(line, separators)
			}
			for i, s := range row {
				if i == len(widths) {
					widths = append(widths, 0)
				}
				widths[i] = max(widths[i], utf8.RuneCountInString(s))
			}
			rows = append(rows, row)
			return true
		})
	})
	for _, row := range rows {
		for i, w := range widths {
			s := joinedField(row, i)
			c.Out.WriteString(s)
			if i < len(widths)-1 {
				c.Out.WriteString(strings.Repeat(" ", w-utf8.RuneCountInString(s)) + between)
			}
		}
		c.Out.WriteByte('\n')
	}
	return status
}

// splitAny cuts a line at each of the separators.
func splitAny(line, separators string) (fields []string) {
	for {
		i := strings.IndexAny(line, separators)
		if i < 0 {
			return append(fields, line)
		}
		fields = append(fields, line[:i])
		_, size := utf8.DecodeRuneInString(line[i:])
		line = line[i+size:]
	}
}
