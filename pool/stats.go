package pool

import (
	"context"
	"time"

	"github.com/sandboxd/sandboxd/executor"
)

// Stats are figures of a Pool as a whole.
type Stats struct {
	// Executors counts the members, Healthy those that get tasks.
	Executors, Healthy int
	// Executed counts answered tasks, those that were answered while they waited included: the sum of Successful
	// and Failed. CacheHits are among Successful.
	Executed, Successful, Failed, CacheHits int64
	// Active counts tasks that are at a member and do not wait for a place, Queued those that wait.
	Active, Queued int64
	// Waited is how long tasks waited for a place of late, on average.
	Waited time.Duration
}

// SuccessRate is the part of the executed tasks that succeeded, 0 to 1; 1 where none was executed.
func (s Stats) SuccessRate() float64 {
	if s.Executed == 0 {
		return 1
	}
	return float64(s.Successful) / float64(s.Executed)
}

// AggregateStats adds up.
func (p *Pool) AggregateStats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	early, _ := p.ahead.length()
	late, waited := p.places.length()
	s := Stats{
		Executors: len(p.members), Executed: p.total.executed, Successful: p.total.successful, Failed: p.total.failed,
		CacheHits: p.total.hits, Queued: int64(early + late), Waited: waited,
	}
	for _, m := range p.members {
		s.Active += m.counts.active
		if m.up {
			s.Healthy++
		}
	}
	return s
}

// AllStatus is how each member is, in the order of the configuration.
func (p *Pool) AllStatus() []executor.MemberStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]executor.MemberStatus, len(p.members))
	for i, m := range p.members {
		all[i] = executor.MemberStatus{
			Name: m.cfg.Name, Healthy: m.up, Restarts: m.restarts, MaxParallel: int64(m.places),
			Active: m.counts.active, Executed: m.counts.executed, Successful: m.counts.successful, Failed: m.counts.failed, CacheHits: m.counts.hits,
		}
		all[i].Platforms = m.can.Platforms
		if m.fault != nil {
			all[i].Fault = m.fault.Error()
		}
	}
	return all
}

// Status implements executor.Executor: AggregateStats and AllStatus in one. It asks no member.
func (p *Pool) Status(context.Context) (executor.Status, error) {
	s := p.AggregateStats()
	p.mu.Lock()
	closing := p.closing
	p.mu.Unlock()
	return executor.Status{
		Healthy: s.Healthy > 0 && !closing, Active: s.Active, Executed: s.Executed, Successful: s.Successful, Failed: s.Failed,
		CacheHits: s.CacheHits, Queued: s.Queued, Waited: s.Waited, Uptime: time.Since(p.born), Members: p.AllStatus(),
	}, nil
}
