package action

import (
	"context"
	"math/rand/v2"
	"sync"

	"github.com/sirupsen/logrus"

	"github.com/sandboxd/sandboxd/cache"
)

// Collector keeps the cache within its size: it collects garbage in the background
// whenever another sixteenth of that size has been stored.
type Collector struct {
	cache *cache.Cache
	log   logrus.FieldLogger
	ctx   context.Context
	stop  context.CancelFunc

	mu     sync.Mutex
	left   int64 // bytes until the next collection
	wanted bool  // one more after the running one
	busy   chan struct{}
}

// NewCollector returns one, which the caller closes before the cache.
func NewCollector(c *cache.Cache, log logrus.FieldLogger) *Collector {
	g := &Collector{cache: c, log: log}
	g.ctx, g.stop = context.WithCancel(context.Background())
	// Not from the full amount, for the sake of processes that store little each.
	g.left = rand.Int64N(g.step()) + 1
	return g
}

func (g *Collector) step() int64 { return max(g.cache.MaxBytes()/16, 1) }

// Stored notes that the cache grew by n bytes.
func (g *Collector) Stored(n int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.left -= n; g.left > 0 {
		return
	}
	g.left = g.step()
	if g.wanted = g.busy != nil; !g.wanted {
		g.busy = make(chan struct{})
		go g.run(g.busy)
	}
}

func (g *Collector) run(done chan struct{}) {
	defer close(done)
	for {
		if report, err := g.cache.GC(g.ctx); err != nil && g.ctx.Err() == nil {
			g.log.WithError(err).Error("the cache may grow beyond its size")
		} else if report.Results+report.Blobs > 0 {
			g.log.WithFields(logrus.Fields{"results": report.Results, "blobs": report.Blobs, "bytes_left": report.Left}).Info("evicted from the cache")
		}
		g.mu.Lock()
		if !g.wanted {
			g.busy = nil
			g.mu.Unlock()
			return
		}
		g.wanted = false
		g.mu.Unlock()
	}
}

// Close waits for a running collection until ctx ends, and then stops it.
func (g *Collector) Close(ctx context.Context) {
	g.mu.Lock()
	busy := g.busy
	g.wanted = false
	g.mu.Unlock()
	if busy != nil {
		select {
		case <-busy:
		case <-ctx.Done():
			g.stop()
			<-busy
		}
	}
	g.stop()
}
