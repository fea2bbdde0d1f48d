package process

import (
	"bytes"
	"io/fs"
	"testing"
	"unicode/utf8"

	"github.com/tetratelabs/wazero"
)

// FuzzSpell: each path has one spelling, which io/fs takes, and which leads back.
func FuzzSpell(f *testing.F) {
	for _, s := range []string{"a/b", "bad\xff", "\xc3", "é", "\xc3\xa9\xc3", "\uef7f\uef80\uefff\uf000", "\ufffd", "\xed\xa0\x80", "a\x80/\xff\xfe"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, p string) {
		s := string(spell([]byte(p)))
		if back := unspell(s); back != p || !utf8.ValidString(s) {
			t.Errorf("%q is spelled %q, which is %q", p, s, back)
		}
		if plain([]byte(p)) != (s == p) {
			t.Errorf("%q is plain: %v, and spelled %q", p, plain([]byte(p)), s)
		}
		if fs.ValidPath(p) && !fs.ValidPath(s) {
			t.Errorf("%q is spelled %q, and not valid", p, s)
		}
	})
}

// TestLend: a function is led to spellings, and the guest has its memory back, and what the function wrote there.
func TestLend(t *testing.T) {
	rt := wazero.NewRuntimeWithConfig(t.Context(), wazero.NewRuntimeConfigInterpreter())
	defer rt.Close(t.Context())
	m, err := rt.Instantiate(t.Context(), []byte("\x00asm\x01\x00\x00\x00\x05\x03\x01\x00\x01\x07\x0a\x01\x06memory\x02\x00")) // a page
	if err != nil {
		t.Fatal(err)
	}
	mem := m.Memory()
	for _, c := range []struct{ from, to, spelledFrom, spelledTo string }{
		{"a/b", "c", "a/b", "c"},
		{"a\xff", "c", "a\uefff", "c"},
		{"a", "\xff\xfe/é", "a", "\uefff\ueffe/é"},
		{"\xff", "\uef80", "\uefff", "\uefee\uefbe\uef80"},
	} {
		for i := range mem.Size() {
			mem.WriteByte(i, byte(i))
		}
		mem.WriteString(4, c.from)
		mem.WriteString(40, c.to)
		all, _ := mem.Read(0, mem.Size())
		before := bytes.Clone(all)
		stack := []uint64{3, 4, uint64(len(c.from)), 3, 40, uint64(len(c.to))}
		giveBack := lend(mem, stack, pathCalls["path_rename"].paths, []span{{0, 64}})
		from, _ := mem.Read(uint32(stack[1]), uint32(stack[2]))
		to, _ := mem.Read(uint32(stack[4]), uint32(stack[5]))
		if string(from) != c.spelledFrom || string(to) != c.spelledTo {
			t.Errorf("%q and %q are spelled %q and %q", c.from, c.to, from, to)
		}
		if c.from != c.spelledFrom && stack[1] < 67 {
			t.Errorf("what is lent is at %d", stack[1])
		}
		mem.WriteByte(60, 99) // as a result is
		before[60] = 99
		giveBack()
		if !bytes.Equal(all, before) {
			t.Errorf("%q and %q: the memory is not what it was", c.from, c.to)
		}
	}
}

// TestRoom: what is lent is nothing that a function has been given.
func TestRoom(t *testing.T) {
	stack := []uint64{0, 10, 15, 4, 0, 40, 0xffffffff, 0xffffffff}
	spans := []span{{0, 0}, {2, 0}, {5, 64}, {6, 0}}
	for _, c := range []struct {
		size, n uint64
		at      uint32
		ok      bool
	}{
		{1 << 16, 5, 10, true}, {1 << 16, 6, 19, true}, {1 << 16, 21, 19, true}, {1 << 16, 22, 104, true}, {1 << 16, 65432, 104, true}, {1 << 16, 65433, 0, false}, {0, 1, 0, false},
	} {
		if at, ok := room(c.size, c.n, stack, spans); at != c.at || ok != c.ok {
			t.Errorf("%d bytes of %d: %d %v, want %d %v", c.n, c.size, at, ok, c.at, c.ok)
		}
	}
}
