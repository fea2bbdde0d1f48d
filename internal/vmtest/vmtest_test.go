package vmtest

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The archive is read by the kernel, so it is checked by another reader than ours.
func TestArchive(t *testing.T) {
	cpio, err := exec.LookPath("cpio")
	var list *exec.Cmd
	if err == nil {
		list = exec.Command(cpio, "-t", "--quiet")
	} else if bb, err := exec.LookPath("busybox"); err == nil {
		list = exec.Command(bb, "cpio", "-t")
	} else {
		t.Skip("neither cpio nor busybox is there to read the archive")
	}
	var a Archive
	a.File("/a/b/odd", 0o644, []byte("12345"))
	a.File("a/b/next", 0o755, nil)
	a.Dir("a/b")
	a.Dir("/a/c/")
	b := a.Bytes()
	if len(b)%4 != 0 {
		t.Errorf("%d bytes: not aligned to 4, as the format demands", len(b))
	}
	list.Stdin = bytes.NewReader(b)
	out, err := list.Output()
	if err != nil {
		t.Fatalf("%v reads the archive: %v", list, err)
	}
	// Parents come before what lies in them, and each only once.
	want := []string{"a", "a/b", "a/b/odd", "a/b/next", "a/c"}
	if got := strings.Fields(string(out)); !slices.Equal(got, want) {
		t.Errorf("the archive holds %q, want %q", got, want)
	}
}

func TestLoadOrder(t *testing.T) {
	deps := map[string][]string{
		"overlay":   nil,
		"nf_tables": {"nfnetlink", "libcrc32c"},
		"nft-nat":   {"nf_tables", "nf-nat"}, // both spellings occur
		"nf_nat":    {"nf_conntrack", "libcrc32c"},
		"nfnetlink": nil, "nf_conntrack": {"libcrc32c"},
		"broken": {"absent"},
	}
	broken := errors.New("cannot be read")
	walk := func(names ...string) ([]string, error) {
		o := order{
			skip: map[string]bool{"libcrc32c": true}, // built in
			load: func(name string) ([]byte, bool, error) {
				if name == "bad_file" {
					return nil, true, broken
				}
				for n := range deps {
					if canonical(n) == name {
						return []byte(n), true, nil
					}
				}
				return nil, false, nil
			},
			deps: func(image []byte) ([]string, error) { return deps[string(image)], nil },
		}
		for _, n := range names {
			if err := o.visit(n, "the test"); err != nil {
				return nil, err
			}
		}
		var got []string
		for _, m := range o.out {
			got = append(got, m.Name)
		}
		return got, nil
	}
	for _, c := range []struct {
		names []string
		want  []string
	}{
		{[]string{"overlay"}, []string{"overlay"}},
		{[]string{"libcrc32c"}, nil},
		{[]string{"nft_nat", "nf_tables"}, []string{"nfnetlink", "nf_tables", "nf_conntrack", "nf_nat", "nft_nat"}},
	} {
		got, err := walk(c.names...)
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("order of %q = %q, %v; want %q", c.names, got, err, c.want)
		}
	}
	if _, err := walk("broken"); err == nil || !strings.Contains(err.Error(), "absent") || !strings.Contains(err.Error(), "broken") {
		t.Errorf("a missing dependency gives %v; want an error that names it and who wants it", err)
	}
	if _, err := walk("bad-file"); !errors.Is(err, broken) {
		t.Errorf("an unreadable module gives %v; want its error", err)
	}
}

func TestParseDepends(t *testing.T) {
	for in, want := range map[string][]string{
		"license=GPL\x00depends=nf_tables,nf-nat\x00intree=Y\x00": {"nf_tables", "nf-nat"},
		"depends=\x00name=overlay\x00":                            nil,
		"name=x\x00":                                              nil,
		"":                                                        nil,
	} {
		if got := parseDepends([]byte(in)); !slices.Equal(got, want) {
			t.Errorf("parseDepends(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestBuiltinModules(t *testing.T) {
	dir := t.TempDir()
	text := "kernel/fs/ext4/ext4.ko\nkernel/net/netfilter/nf-x.ko\n"
	if err := os.WriteFile(filepath.Join(dir, "modules.builtin"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := builtinModules(dir)
	if err != nil || len(got) != 2 || !got["ext4"] || !got["nf_x"] {
		t.Errorf("built in: %v, %v; want ext4 and nf_x", got, err)
	}
}

// A kernel cut short by a broken download must give an error, not a panic.
func TestUnpackImageRefusesGarbage(t *testing.T) {
	header := make([]byte, 0x400)
	copy(header[0x202:], "HdrS")
	copy(header[0x248:], "\xff\xff\xff\xff\xff\xff\xff\xff")
	for _, bz := range [][]byte{nil, header[:0x210], header, make([]byte, 1<<16)} {
		if _, err := unpackImage(bz); err == nil {
			t.Errorf("%d bytes that are no kernel were unpacked", len(bz))
		}
	}
}
