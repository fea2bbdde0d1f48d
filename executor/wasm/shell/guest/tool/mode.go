package tool

import (
	"errors"
	"io/fs"
	"strconv"
	"strings"
)

// ParseMode reads the mode operand of chmod: a number in octal, or clauses as in
// u+x,go=r. old is what it changes, dir whether old is of a directory (for X), and
// umask masks clauses that name nobody.
func ParseMode(s string, old fs.FileMode, dir bool, umask fs.FileMode) (fs.FileMode, error) {
	if s == "" {
		return 0, errMode
	}
	if s[0] >= '0' && s[0] <= '9' {
		n, err := strconv.ParseUint(s, 8, 32)
		if err != nil || n > 0o7777 {
			return 0, errMode
		}
		return FromBits(uint32(n)), nil
	}
	bits := Bits(old)
	for clause := range strings.SplitSeq(s, ",") {
		var err error
		if bits, err = applyClause(bits, clause, dir, uint32(umask)); err != nil {
			return 0, err
		}
	}
	return FromBits(bits), nil
}

var errMode = errors.New("invalid mode")

func applyClause(bits uint32, clause string, dir bool, umask uint32) (uint32, error) {
	ops := strings.TrimLeft(clause, "ugoa")
	who := clause[:len(clause)-len(ops)]
	var mask, special uint32
	for _, w := range who {
		switch w {
		case 'u':
			mask, special = mask|0o700, special|0o4000
		case 'g':
			mask, special = mask|0o070, special|0o2000
		case 'o':
			mask = mask | 0o007
		case 'a':
			mask, special = 0o777, 0o6000
		}
	}
	allowed := uint32(0o777)
	if who == "" {
		mask, special, allowed = 0o777, 0o6000, 0o777&^umask
	}
	if ops == "" || strings.IndexByte("+-=", ops[0]) < 0 {
		return 0, errMode
	}
	for ops != "" {
		op := ops[0]
		end := strings.IndexAny(ops[1:], "+-=")
		perms := ops[1:]
		if end >= 0 {
			perms = ops[1 : 1+end]
		}
		ops = ops[1+len(perms):]
		var set uint32
		for _, p := range perms {
			switch p {
			case 'r':
				set |= 0o444
			case 'w':
				set |= 0o222
			case 'x':
				set |= 0o111
			case 'X':
				if dir || bits&0o111 != 0 {
					set |= 0o111
				}
			case 's':
				set |= special & 0o6000
			case 't':
				set |= 0o1000
			case 'u':
				set |= spread(bits >> 6)
			case 'g':
				set |= spread(bits >> 3)
			case 'o':
				set |= spread(bits)
			default:
				return 0, errMode
			}
		}
		set = set&mask&allowed | set&special | set&0o1000
		switch op {
		case '+':
			bits |= set
		case '-':
			bits &^= set
		case '=':
			bits = bits&^(mask|special) | set
		}
	}
	return bits, nil
}

func spread(b uint32) uint32 { return b & 7 * 0o111 }
