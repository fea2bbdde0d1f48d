package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
)

// maxReported bounds the list in a VerifyReport.
const maxReported = 1000

// VerifyReport says what Verify found.
type VerifyReport struct {
	// Blobs and Bytes are what was read.
	Blobs int64 `json:"blobs"`
	Bytes int64 `json:"bytes"`
	// Corrupt are the first 1000 of the blobs that were damaged and so removed, with
	// the sizes they had on disk. CorruptBlobs is the number of all.
	Corrupt      []Digest `json:"corrupt,omitempty"`
	CorruptBlobs int64    `json:"corrupt_blobs"`
	// Results is what was read; DroppedResults is how many of them were damaged or
	// lacked a blob, and so were removed.
	Results        int64 `json:"results"`
	DroppedResults int64 `json:"dropped_results"`
}

// Verify reads every blob and every result, whatever is known of them, and
// removes what is damaged or incomplete. Other uses go on meanwhile. When it ends
// early, the report says how far it came.
func (c *Cache) Verify(ctx context.Context) (VerifyReport, error) {
	var r VerifyReport
	err := c.eachBlob(func(d Digest, _ fs.FileInfo) error { return c.verifyBlob(ctx, d, &r) })
	if err == nil {
		err = c.eachResult(func(f resultFile) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			return c.verifyResult(f, &r)
		})
	}
	if err != nil {
		return r, fmt.Errorf("verify the cache: %w", err)
	}
	return r, nil
}

func (c *Cache) verifyBlob(ctx context.Context, d Digest, r *VerifyReport) error {
	f, err := c.root.Open(blobPath(d))
	if err != nil {
		return absent(err)
	}
	defer func() { _ = f.Close() }()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	ok, err := holds(ctx, f, fi, d)
	if err != nil {
		return fmt.Errorf("blob %v: %w", d, err)
	}
	r.Blobs++
	r.Bytes += fi.Size()
	if ok {
		return nil
	}
	if r.CorruptBlobs++; len(r.Corrupt) < maxReported {
		r.Corrupt = append(r.Corrupt, d)
	}
	return c.remove(d, fi)
}

func (c *Cache) verifyResult(f resultFile, r *VerifyReport) error {
	e, fi, err := c.readEntry(f.name, f.namespace, f.action)
	if err != nil && !errors.Is(err, errEntry) {
		return absent(err)
	}
	r.Results++
	whole := err == nil
	for _, d := range e.blobs {
		// Its content was looked at just now.
		b, err := c.root.Lstat(blobPath(d))
		if err := absent(err); err != nil {
			return err
		}
		whole = whole && err == nil && b.Size() == d.Size
	}
	if whole {
		return nil
	}
	r.DroppedResults++
	return c.drop(f.name, fi)
}
