package action

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/sandboxd/sandboxd/cache"
	"github.com/sandboxd/sandboxd/executor"
)

// record is a result as it is stored: what the JSON of a TaskOutput leaves out
// stands beside it.
type record struct {
	Output             *executor.TaskOutput
	Duration           time.Duration
	CPUUser, CPUSystem time.Duration
}

// ErrRecord says that a stored result cannot be read. It may be of another version, and the task can be run.
var ErrRecord = errors.New("cached result cannot be read")

// Store stores the result of the task with signature s, which must be a success whose blobs are in the cache.
func Store(c *cache.Cache, namespace string, s Signature, out *executor.TaskOutput) error {
	b, err := json.Marshal(record{out, out.Duration, out.Usage.CPUUser, out.Usage.CPUSystem})
	if err != nil {
		return err
	}
	return c.PutResult(namespace, s.Digest, b, Blobs(out))
}

// LookUp returns the stored result of the task with signature s, which is a success, or nil if there
// is none.
func LookUp(c *cache.Cache, namespace string, s Signature) (*executor.TaskOutput, error) {
	b, _, err := c.Result(namespace, s.Digest)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var r record
	if err := json.Unmarshal(b, &r); err != nil || r.Output == nil {
		return nil, errors.Join(ErrRecord, err)
	}
	out := r.Output
	out.Duration, out.Usage.CPUUser, out.Usage.CPUSystem = r.Duration, r.CPUUser, r.CPUSystem
	out.Cached = true
	if !out.Success() {
		return nil, fmt.Errorf("cached result %s is not a success", s)
	}
	return out, nil
}

// Blobs are what out names and does not hold.
func Blobs(out *executor.TaskOutput) []cache.Digest {
	var all []cache.Digest
	for _, f := range out.OutputFiles {
		if f.Kind == executor.KindFile {
			all = append(all, cache.Digest(f.Digest))
		}
	}
	for _, s := range []executor.Stream{out.Stdout, out.Stderr} {
		if s.Truncated {
			all = append(all, cache.Digest(s.Digest))
		}
	}
	return all
}

// BlobBytes is how large the blobs of out are together.
func BlobBytes(out *executor.TaskOutput) (n int64) {
	for _, d := range Blobs(out) {
		n += d.Size
	}
	return n
}

// OpenBlob returns a blob's content, verified. The error of one that is not there is an fs.ErrNotExist.
func OpenBlob(c *cache.Cache, d executor.Digest) (io.ReadCloser, error) {
	b, err := c.Open(cache.Digest(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, executor.Errorf(executor.Invalid, "blob %s is not in the cache; run the task again with cache mode refresh: %w", d, err)
	}
	if err != nil {
		return nil, err
	}
	return b, nil
}
