package cache

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
)

// Digest names a blob as the Remote Execution API does: the lower-case hex
// SHA-256 of its bytes, and their number. The zero Digest names nothing.
type Digest struct {
	Hash string `json:"hash"`
	Size int64  `json:"size"`
}

// String is hash/size.
func (d Digest) String() string { return d.Hash + "/" + strconv.FormatInt(d.Size, 10) }

// DigestOf is the digest of b.
func DigestOf(b []byte) Digest {
	sum := sha256.Sum256(b)
	return digest(sum, int64(len(b)))
}

func digest(sum [sha256.Size]byte, size int64) Digest {
	return Digest{Hash: hex.EncodeToString(sum[:]), Size: size}
}

// check refuses what is not a digest. A Hash becomes part of a path, so nothing
// unchecked may reach one.
func (d Digest) check() error {
	if d.Size < 0 || len(d.Hash) != 2*sha256.Size || !isHex(d.Hash) {
		return fmt.Errorf("digest %.80q of %d bytes: want 64 lower-case hex digits and a size", d.Hash, d.Size)
	}
	return nil
}

func isHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// sum is the hash as bytes. The digest must have been checked.
func (d Digest) sum() (sum [sha256.Size]byte) {
	_, _ = hex.Decode(sum[:], []byte(d.Hash))
	return sum
}
