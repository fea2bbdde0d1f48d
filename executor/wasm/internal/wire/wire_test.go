package wire

import (
	"bytes"
	"io"
	"testing"
)

// FuzzRead: what is read is what was written, or an error; never more than was to be.
func FuzzRead(f *testing.F) {
	f.Add([]byte("o\x00\x00\x00\x03abcD\x00\x00\x00\x00"))
	f.Add([]byte("o\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		var back bytes.Buffer
		for {
			k, body, err := Read(r, 1000, nil)
			if err != nil {
				if err == io.EOF && back.Len() != len(in) && len(in)-back.Len() >= 5 {
					t.Errorf("the end after %d of %d bytes", back.Len(), len(in))
				}
				break
			}
			if len(body) > 1000 {
				t.Errorf("a frame of %d bytes", len(body))
			}
			if err := Write(&back, k, body); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.HasPrefix(in, back.Bytes()) {
			t.Errorf("%q became %q", in, back.Bytes())
		}
	})
}

func TestStrings(t *testing.T) {
	in := []string{"a", "", "\xff"}
	if got := Strings(Bytes(in)); len(got) != 3 || got[2] != "\xff" {
		t.Errorf("%q", got)
	}
}
