package vmtest

import "time"

// rdtsc reads the processor's time-stamp counter.
func rdtsc() uint64

// TSCkHz measures the rate of the machine's time-stamp counter, which is the
// guest's too. Told of it (tsc_early_khz=), the guest need not calibrate against
// an emulated timer, which fails or hangs whenever the host is busy. Zero means
// unknown.
func TSCkHz() uint64 {
	var khz uint64
	best := time.Duration(1<<63 - 1)
	for range 3 { // the shortest span is the one least disturbed
		t, c := time.Now(), rdtsc()
		time.Sleep(20 * time.Millisecond)
		ticks, span := rdtsc()-c, time.Since(t)
		if span < best {
			best, khz = span, ticks*1e6/uint64(span.Nanoseconds())
		}
	}
	return khz
}
