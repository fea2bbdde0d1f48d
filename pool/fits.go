package pool

import (
	"slices"

	"github.com/sandboxd/sandboxd/executor"
)

// fits reports whether an executor says that it can do what a task asks for. What its Capabilities do not tell,
// its own refusal does: see task.again.
func fits(spec *executor.TaskSpec, can executor.Capabilities) bool {
	if !slices.Contains(can.Networks, spec.Network.String()) {
		return false
	}
	if spec.Rootfs != "" && !can.Sandboxing {
		return false
	}
	l := spec.Limits
	for _, f := range []struct {
		name  string
		asked int64
	}{
		{"cpu_quota_us", l.CPUQuotaUS}, {"memory_bytes", l.MemoryBytes}, {"pids_max", l.PidsMax}, {"io_weight", l.IOWeight},
		{"tmp_bytes", l.TmpBytes}, {"open_files", l.OpenFiles}, {"output_bytes", l.OutputBytes},
	} {
		none := f.asked == 0 || f.asked == executor.Unlimited || f.name == "io_weight" && f.asked == executor.DefaultIOWeight
		if !none && !slices.Contains(can.Limits, f.name) {
			return false
		}
	}
	return true
}
