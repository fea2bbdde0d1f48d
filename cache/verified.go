package cache

import (
	"io/fs"
	"os"
	"time"
)

// maxVerified bounds the memory of what is known to be right.
const maxVerified = 1 << 16

// settle is how much older than its reading a file's times must be for the
// reading to be trusted later. A write within the same tick of a file system's
// clock leaves the times as they were: two seconds is the coarsest clock.
const settle = 2 * time.Second

// verification is what a blob looked like when it was known to be right.
type verification struct {
	stamp stamp
	size  int64
}

// trusted reports whether the blob was found right by this process and has not
// been written since.
func (c *Cache) trusted(d Digest, fi fs.FileInfo) bool {
	s, ok := stampOf(fi)
	if !ok {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	v, ok := c.verified[d.Hash]
	return ok && v == verification{s, d.Size} && fi.Size() == d.Size
}

// trust remembers the blob as right. Its times must have settled, or be ours.
func (c *Cache) trust(d Digest, fi fs.FileInfo) {
	s, ok := stampOf(fi)
	if !ok {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	makeRoom(c.verified)
	c.verified[d.Hash] = verification{s, d.Size}
}

func (c *Cache) distrust(d Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.verified, d.Hash)
	delete(c.synced, d.Hash)
}

// sameStamp reports whether a file looks unwritten.
func sameStamp(a, b fs.FileInfo) bool {
	s, ok := stampOf(a)
	t, ok2 := stampOf(b)
	return ok && ok2 && s == t && a.Size() == b.Size()
}

// settled reports whether a file that was read at the given time can be told from
// one that is written afterwards.
func settled(fi fs.FileInfo, read time.Time) bool {
	s, ok := stampOf(fi)
	return ok && s.settled(read)
}

// stamp is what tells a file that was written from one that was not.
type stamp struct {
	dev, ino     uint64
	mtime, ctime int64 // nanoseconds since 1970
}

func (s stamp) settled(read time.Time) bool {
	return max(s.mtime, s.ctime)+int64(settle) < read.UnixNano()
}

// sameFile is os.SameFile, and the same content for all we can see: a replaced
// file may get the number of the old one.
func sameFile(a, b fs.FileInfo) bool {
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}
