package limits

import "testing"

func FuzzParsers(f *testing.F) {
	f.Add("31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
	f.Add("8:0 rbytes=1 wbytes=2\n")
	f.Fuzz(func(t *testing.T, s string) {
		parseMounts(s)
		ioStat(s)
		field(s, "max")
	})
}

func TestParsers(t *testing.T) {
	hs := parseMounts("32 31 0:29 / /c/cpu rw - cgroup cgroup rw,cpu\n41 31 0:38 /x /c/u rw - cgroup2 cgroup2 rw\n")
	if len(hs) != 1 || hs[0].dir != "/c/cpu" || hs[0].v2 {
		t.Fatal(hs)
	}
	if r, w := ioStat("8:0 rbytes=1 wbytes=2\n8:1 rbytes=3 wbytes=4"); *r != 4 || *w != 6 {
		t.Fatal(*r, *w)
	}
	if n := field("low 1\noom_kill 7\n", "oom_kill"); n != 7 {
		t.Fatal(n)
	}
}

func TestUnreadableIsAnError(t *testing.T) {
	dir := t.TempDir()
	if s, err := readIfThere(dir + "/none"); s != "" || err != nil {
		t.Errorf("a missing file: %q, %v; want nothing", s, err)
	}
	if _, err := readIfThere(dir); err == nil { // reading a directory fails with EISDIR
		t.Error("what cannot be read gave no error, so it would count as no event")
	}
}
