package box

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/tool"
)

// maxBlock bounds what dd holds in memory.
const maxBlock = 256 << 20

// ddRun is one run of dd.
type ddRun struct {
	c                       *tool.Call
	value                   map[string]string
	is                      map[string]bool // the words of conv, iflag and oflag, with a colon between
	ibs, obs, skip, seek    int64
	count                   int64 // of blocks or bytes, negative if all
	in                      io.Reader
	out                     io.Writer
	wholeIn, partIn         int64
	wholeOut, partOut, size int64
}

// ddWords are the words that operands take.
var ddWords = map[string]string{
	"conv":   "notrunc nocreat excl sync noerror fsync fdatasync lcase ucase",
	"iflag":  "fullblock count_bytes skip_bytes",
	"oflag":  "append seek_bytes",
	"status": "none noxfer",
}

func dd(_ context.Context, c *tool.Call) int {
	_, args, status, ok := c.Parse(tool.Options{})
	if !ok {
		return status
	}
	d := &ddRun{c: c, value: map[string]string{}, is: map[string]bool{}, ibs: 512, obs: 512, count: -1}
	for _, a := range args {
		name, v, _ := strings.Cut(a, "=")
		if err := d.operand(a, name, v); err != nil {
			if strings.HasPrefix(err.Error(), "invalid number") {
				return c.Fail("%v", err)
			}
			return c.Usage(1, "%v", err)
		}
	}
	if d.value["bs"] != "" {
		d.obs = d.ibs
	}
	if !d.is["iflag:skip_bytes"] {
		d.skip *= d.ibs
	}
	if !d.is["oflag:seek_bytes"] {
		d.seek *= d.obs
	}
	start := time.Now()
	if err := d.run(); err != nil {
		if err == errDDOpen {
			return 1
		}
		c.Errorf("%v", err)
		status = 1
	}
	d.report(time.Since(start))
	return status
}

// errDDOpen is an error that was told, before there was anything to report.
const errDDOpen = errString("cannot open")

func (d *ddRun) operand(a, name, v string) error {
	var number *int64
	low := int64(0)
	switch name {
	case "if", "of":
	case "ibs", "bs":
		number, low = &d.ibs, 1
		if d.value["bs"] != "" && name == "ibs" {
			return nil
		}
	case "obs":
		number, low = &d.obs, 1
	case "count":
		number = &d.count
	case "skip", "iseek":
		number = &d.skip
	case "seek", "oseek":
		number = &d.seek
	case "conv", "iflag", "oflag", "status":
		for w := range strings.SplitSeq(v, ",") {
			if !strings.Contains(" "+ddWords[name]+" ", " "+w+" ") {
				what := map[string]string{"conv": "conversion", "iflag": "input flag", "oflag": "output flag", "status": "status level"}[name]
				return errorf("invalid %s: '%s'", what, w)
			}
			d.is[name+":"+w] = true
		}
	default:
		return errorf("unrecognized operand '%s'", a)
	}
	if number != nil {
		n, bytes, ok := ddNumber(v)
		if !ok || n < low || low > 0 && n > maxBlock {
			return errorf("invalid number: '%s'", v)
		}
		*number = n
		if bytes {
			d.is[map[string]string{"count": "iflag:count_bytes", "skip": "iflag:skip_bytes", "iseek": "iflag:skip_bytes", "seek": "oflag:seek_bytes", "oseek": "oflag:seek_bytes"}[name]] = true
		}
	}
	d.value[name] = v
	return nil
}

// ddNumber is a product of sizes, as in 2x512 or 4K. A B at the end says that it is of bytes.
func ddNumber(s string) (n int64, bytes, ok bool) {
	n = 1
	for part := range strings.SplitSeq(s, "x") {
		k, ok := parseSize(part)
		if rest, is := strings.CutSuffix(part, "B"); !ok && is {
			k, ok = parseSize(rest)
			bytes = true
		}
		if !ok || k > 0 && n > (1<<62)/k {
			return 0, false, false
		}
		n *= k
	}
	return n, bytes, true
}

// open sets both ends up.
func (d *ddRun) open() (closeAll func(), err error) {
	c := d.c
	d.in, d.out, closeAll = c.Stdin, c.Out, func() {}
	from := "'standard input'"
	if name, given := d.value["if"]; given {
		f, err := c.Open(name)
		if err != nil {
			c.Errorf("failed to open '%s': %s", name, tool.Text(err))
			return nil, errDDOpen
		}
		d.in, closeAll, from = f, func() { f.Close() }, name
	}
	if name, given := d.value["of"]; given {
		flag := os.O_WRONLY | os.O_CREATE
		if d.is["conv:nocreat"] {
			flag = os.O_WRONLY
		}
		if d.is["conv:excl"] {
			flag |= os.O_EXCL
		}
		if d.is["oflag:append"] {
			flag |= os.O_APPEND
		}
		if !d.is["conv:notrunc"] && d.seek == 0 {
			flag |= os.O_TRUNC
		}
		f, err := tool.OpenFile(c.Dir, name, flag, 0o666, c.Proc, c.Stdin, c.Stdout, c.Stderr)
		if err != nil {
			closeAll()
			c.Errorf("failed to open '%s': %s", name, tool.Text(err))
			return nil, errDDOpen
		}
		closeIn := closeAll
		d.out, closeAll = f, func() { closeIn(); f.Close() }
		if file, ok := f.(*os.File); ok && d.seek > 0 {
			if !d.is["conv:notrunc"] {
				err = file.Truncate(d.seek)
			}
			if err == nil {
				_, err = file.Seek(d.seek, io.SeekStart)
			}
			if err != nil {
				return closeAll, errorf("%s: cannot seek: %s", name, tool.Text(err))
			}
		}
	} else if d.seek > 0 {
		return closeAll, errString("'standard output': cannot seek: Illegal seek")
	}
	if d.skip > 0 {
		n, err := io.CopyN(io.Discard, d.in, d.skip)
		if err != nil && err != io.EOF {
			return closeAll, errorf("error reading %s: %s", from, tool.Text(err))
		}
		if n < d.skip {
			c.Errorf("%s: cannot skip to specified offset", from)
		}
	}
	return closeAll, nil
}

func (d *ddRun) run() error {
	closeAll, err := d.open()
	if closeAll != nil {
		defer closeAll()
	}
	if err != nil {
		return err
	}
	to := d.value["of"]
	if to == "" {
		to = "standard output"
	}
	buf := make([]byte, d.ibs)
	var gathered []byte
	put := func(b []byte) error {
		n, err := d.out.Write(b)
		if err != nil {
			d.size += int64(n)
			return errorf("error writing '%s': %s", to, tool.Text(err))
		}
		if d.size += int64(n); int64(n) == d.obs {
			d.wholeOut++
		} else {
			d.partOut++
		}
		return nil
	}
	for read := int64(0); ; {
		b := buf
		if d.count >= 0 {
			if d.is["iflag:count_bytes"] {
				b = buf[:min(d.ibs, d.count-read)]
			} else if d.wholeIn+d.partIn >= d.count {
				break
			}
		}
		if len(b) == 0 {
			break
		}
		n, err := d.block(b)
		if n == 0 {
			if err != io.EOF {
				from, given := d.value["if"]
				if !given {
					from = "standard input"
				}
				return errorf("error reading '%s': %s", from, tool.Text(err))
			}
			break
		}
		if read += int64(n); int64(n) == d.ibs {
			d.wholeIn++
		} else {
			d.partIn++
			if d.is["conv:sync"] {
				clear(buf[n:])
				n = len(buf)
				b = buf
			}
		}
		b = b[:n]
		switch {
		case d.is["conv:lcase"]:
			swapCase(b, 'A', 'Z')
		case d.is["conv:ucase"]:
			swapCase(b, 'a', 'z')
		}
		if d.value["bs"] != "" {
			if err := put(b); err != nil {
				return err
			}
			continue
		}
		gathered = append(gathered, b...)
		for int64(len(gathered)) >= d.obs {
			if err := put(gathered[:d.obs]); err != nil {
				return err
			}
			gathered = gathered[d.obs:]
		}
	}
	if len(gathered) > 0 {
		return put(gathered)
	}
	return nil
}

// swapCase changes the case of the letters from low to high, which are in ASCII.
func swapCase(b []byte, low, high byte) {
	for i, x := range b {
		if x >= low && x <= high {
			b[i] = x ^ 0x20
		}
	}
}

// block reads once, as much as there is, or a whole block if that is asked for.
func (d *ddRun) block(b []byte) (n int, err error) {
	if d.is["iflag:fullblock"] {
		if n, err = io.ReadFull(d.in, b); err == io.ErrUnexpectedEOF {
			err = io.EOF
		}
		return n, err
	}
	for n == 0 && err == nil {
		n, err = d.in.Read(b)
	}
	return n, err
}

func (d *ddRun) report(took time.Duration) {
	if d.is["status:none"] {
		return
	}
	w := d.c.Stderr
	d.c.Out.Flush()
	fmt.Fprintf(w, "%d+%d records in\n%d+%d records out\n", d.wholeIn, d.partIn, d.wholeOut, d.partOut)
	if d.is["status:noxfer"] {
		return
	}
	s := fmt.Sprintf("%d bytes", d.size)
	if d.size == 1 {
		s = "1 byte"
	}
	si, iec := ddHuman(float64(d.size), 1000), ddHuman(float64(d.size), 1024)
	switch {
	case d.size >= 1024:
		s += " (" + si + ", " + iec + ")"
	case d.size >= 1000:
		s += " (" + si + ")"
	}
	seconds := max(took.Seconds(), 1e-9)
	rate := ddHuman(float64(d.size)/seconds, 1000)
	if d.size == 0 {
		rate = "0.0 kB"
	}
	fmt.Fprintf(w, "%s copied, %s s, %s/s\n", s, strconv.FormatFloat(seconds, 'g', 6, 64), rate)
}

// ddHuman is a size in the unit that fits.
func ddHuman(n, base float64) string {
	units := []string{"B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB"}
	if base == 1024 {
		units = []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB"}
	}
	i := 0
	for n >= base && i < len(units)-1 {
		n /= base
		i++
	}
	if i > 0 && n < 9.95 {
		return fmt.Sprintf("%.1f %s", n, units[i])
	}
	return fmt.Sprintf("%.0f %s", n, units[i])
}
