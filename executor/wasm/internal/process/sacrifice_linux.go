package process

import "os"

// sacrifice has the kernel choose a worker before others, where the machine has no more memory.
func sacrifice() {
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("500"), 0) // where that may not be written, it is not
}
