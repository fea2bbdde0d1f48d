package process

import (
	"io/fs"
	"testing"
	"unicode/utf8"
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
