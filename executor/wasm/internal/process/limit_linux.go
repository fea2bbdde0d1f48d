package process

import (
	"os"
	"syscall"
)

// spare is what a worker may have beyond its task's memory: compiled code, what the tree knows, garbage.
const spare = 2 << 30

// limit bounds the memory of this process, for what the linear memory's own limit does not see.
func limit(memory int64) {
	var l syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_DATA, &l) != nil {
		return
	}
	l.Cur = min(l.Max, uint64(memory)+spare)
	_ = syscall.Setrlimit(syscall.RLIMIT_DATA, &l) // a second wall; it is as high as it was
}

// sacrifice has the kernel choose a worker before others, where the machine has no more memory.
func sacrifice() {
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("500"), 0) // where that may not be written, it is not
}
