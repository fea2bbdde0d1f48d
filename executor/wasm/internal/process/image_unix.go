//go:build unix && !linux

package process

import "bytes"

// image is what memory held, as a copy.
type image struct{ b []byte }

// take makes an image of b.
func (i *image) take(b []byte) error {
	i.b = bytes.Clone(b)
	return nil
}

// restore makes the memory what it was.
func (i *image) restore(b []byte) { copy(b, i.b) }

// drop forgets the copy.
func (i *image) drop() { i.b = nil }
