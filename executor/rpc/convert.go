package rpc

import (
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/sandboxd/sandboxd/executor"
	pb "github.com/sandboxd/sandboxd/executor/executorpb"
)

// text makes s fit for a protobuf string, which must be UTF-8. It is for what we
// write ourselves; what a task or a path can fill is bytes on the wire.
func text[S ~string](s S) string { return strings.ToValidUTF8(string(s), "\uFFFD") }

func texts(ss []string) []string { return mapped(ss, text[string]) }

func toBytes[S ~string](s S) []byte {
	if s == "" {
		return nil
	}
	return []byte(s)
}

func toString[S ~string](b []byte) S { return S(b) }

// mapped is f of each; nil for none, since the wire does not tell them apart.
func mapped[A, B any](as []A, f func(A) B) []B {
	if len(as) == 0 {
		return nil
	}
	bs := make([]B, len(as))
	for i, a := range as {
		bs[i] = f(a)
	}
	return bs
}

// fromRequest takes any message apart; a body that is unknown becomes nil, which Serve refuses.
func fromRequest(m *pb.Request) executor.Request {
	r := executor.Request{ID: m.GetId()}
	switch b := m.GetBody().(type) {
	case *pb.Request_ExecuteTask:
		r.Body = executor.ExecuteTask{Spec: fromSpec(b.ExecuteTask.GetSpec()), Events: b.ExecuteTask.GetEvents()}
	case *pb.Request_EventsTaken:
		r.Body = executor.EventsTaken{Events: b.EventsTaken.GetEvents()}
	case *pb.Request_CancelTask:
		r.Body = executor.CancelTask{}
	case *pb.Request_GetStatus:
		r.Body = executor.GetStatus{}
	case *pb.Request_Ping:
		r.Body = executor.Ping{}
	case *pb.Request_GetCapabilities:
		r.Body = executor.GetCapabilities{}
	case *pb.Request_Shutdown:
		r.Body = executor.Shutdown{GraceMillis: b.Shutdown.GetGraceMs()}
	}
	return r
}

// toRequest is nil for what does not cross a wire.
func toRequest(r executor.Request) *pb.Request {
	m := &pb.Request{Id: r.ID}
	switch b := r.Body.(type) {
	case executor.ExecuteTask:
		m.Body = &pb.Request_ExecuteTask{ExecuteTask: &pb.ExecuteTask{Spec: toSpec(b.Spec), Events: b.Events}}
	case executor.EventsTaken:
		m.Body = &pb.Request_EventsTaken{EventsTaken: &pb.EventsTaken{Events: b.Events}}
	case executor.CancelTask:
		m.Body = &pb.Request_CancelTask{CancelTask: &pb.CancelTask{}}
	case executor.GetStatus:
		m.Body = &pb.Request_GetStatus{GetStatus: &pb.GetStatus{}}
	case executor.Ping:
		m.Body = &pb.Request_Ping{Ping: &pb.Ping{}}
	case executor.GetCapabilities:
		m.Body = &pb.Request_GetCapabilities{GetCapabilities: &pb.GetCapabilities{}}
	case executor.Shutdown:
		m.Body = &pb.Request_Shutdown{Shutdown: &pb.Shutdown{GraceMs: b.GraceMillis}}
	default:
		return nil
	}
	return m
}

func toSpec(s *executor.TaskSpec) *pb.TaskSpec {
	if s == nil {
		return nil
	}
	m := &pb.TaskSpec{
		Name: toBytes(s.Name), Recipe: toBytes(s.Recipe), Script: toBytes(s.Script),
		Argv: mapped(s.Argv, toBytes[string]), Stdin: s.Stdin,
		Workdir: toBytes(s.Workdir), WorkdirMode: toBytes(s.WorkdirMode),
		Outputs:       mapped(s.Outputs, toBytes[string]),
		DepSignatures: mapped(s.DepSignatures, toBytes[executor.Signature]),
		Rootfs:        toBytes(s.Rootfs), TimeoutNs: int64(s.Timeout), Network: toBytes(s.Network),
		Allow: mapped(s.Allow, toBytes[string]), Audit: s.Audit,
		Debug: s.Debug, Cache: toBytes(s.Cache), Priority: int32(s.Priority), Platforms: mapped(s.Platforms, toBytes[string]),
		Inputs: mapped(s.Inputs, func(i executor.Input) *pb.Input {
			return &pb.Input{Host: toBytes(i.Host), Sandbox: toBytes(i.Sandbox)}
		}),
		Limits: &pb.ResourceLimits{
			CpuQuotaUs: s.Limits.CPUQuotaUS, MemoryBytes: s.Limits.MemoryBytes, PidsMax: s.Limits.PidsMax, IoWeight: s.Limits.IOWeight,
			TmpBytes: s.Limits.TmpBytes, OpenFiles: s.Limits.OpenFiles, OutputBytes: s.Limits.OutputBytes,
		},
	}
	for k, v := range s.Env {
		m.Env = append(m.Env, &pb.EnvVar{Name: toBytes(k), Value: toBytes(v)})
	}
	return m
}

func fromSpec(m *pb.TaskSpec) *executor.TaskSpec {
	if m == nil {
		return nil
	}
	l := m.GetLimits()
	s := &executor.TaskSpec{
		Name: string(m.GetName()), Recipe: string(m.GetRecipe()), Script: string(m.GetScript()),
		Argv: mapped(m.GetArgv(), toString[string]), Stdin: m.GetStdin(),
		Workdir: string(m.GetWorkdir()), WorkdirMode: executor.WorkdirMode(m.GetWorkdirMode()),
		Outputs:       mapped(m.GetOutputs(), toString[string]),
		DepSignatures: mapped(m.GetDepSignatures(), toString[executor.Signature]),
		Rootfs:        string(m.GetRootfs()), Timeout: time.Duration(m.GetTimeoutNs()), Network: executor.NetworkPolicy(m.GetNetwork()),
		Allow: mapped(m.GetAllow(), toString[string]), Audit: m.GetAudit(),
		Debug: m.GetDebug(), Cache: executor.CacheMode(m.GetCache()), Priority: int(m.GetPriority()), Platforms: mapped(m.GetPlatforms(), toString[string]),
		Inputs: mapped(m.GetInputs(), func(i *pb.Input) executor.Input {
			return executor.Input{Host: string(i.GetHost()), Sandbox: string(i.GetSandbox())}
		}),
		Limits: executor.ResourceLimits{
			CPUQuotaUS: l.GetCpuQuotaUs(), MemoryBytes: l.GetMemoryBytes(), PidsMax: l.GetPidsMax(), IOWeight: l.GetIoWeight(),
			TmpBytes: l.GetTmpBytes(), OpenFiles: l.GetOpenFiles(), OutputBytes: l.GetOutputBytes(),
		},
	}
	if len(m.GetEnv()) > 0 {
		s.Env = make(map[string]string, len(m.GetEnv()))
	}
	for _, v := range m.GetEnv() {
		s.Env[string(v.GetName())] = string(v.GetValue())
	}
	return s
}

func toResponse(r executor.Response) *pb.Response {
	m := &pb.Response{Id: r.ID}
	switch b := r.Body.(type) {
	case executor.TaskResult:
		m.Body = &pb.Response_TaskResult{TaskResult: toOutput(b.Output)}
	case executor.Status:
		m.Body = &pb.Response_Status{Status: &pb.Status{
			Healthy: b.Healthy, ActiveTasks: b.Active, TotalExecuted: b.Executed, Successful: b.Successful, Failed: b.Failed,
			CacheHits: b.CacheHits, UptimeNs: int64(b.Uptime), QueuedTasks: b.Queued, WaitedNs: int64(b.Waited), Executors: mapped(b.Members, toMember),
		}}
	case executor.Pong:
		m.Body = &pb.Response_Pong{Pong: &pb.Pong{}}
	case executor.Capabilities:
		m.Body = &pb.Response_Capabilities{Capabilities: &pb.Capabilities{
			Sandboxing: b.Sandboxing, NetworkIsolation: b.NetworkIsolation, Caching: b.Caching, MaxParallel: int64(b.MaxParallel),
			Platforms: texts(b.Platforms), Version: text(b.Version), Networks: texts(b.Networks), Limits: texts(b.Limits), Missing: texts(b.Missing),
		}}
	case executor.ShutdownAck:
		m.Body = &pb.Response_ShutdownAck{ShutdownAck: &pb.ShutdownAck{}}
	case *executor.Error:
		m.Body = &pb.Response_Error{Error: &pb.Error{Kind: text(b.Kind), Field: text(b.Field), Text: toBytes(b.Text)}}
	case executor.TaskEvent:
		m.Body = &pb.Response_TaskEvent{TaskEvent: &pb.TaskEvent{Kind: text(b.Kind), Data: b.Data, Platform: text(b.Platform), Text: text(b.Text)}}
	}
	return m
}

// fromResponse takes any message apart but task_result_part; a body that is
// unknown becomes an Internal error.
func fromResponse(m *pb.Response) executor.Response {
	r := executor.Response{ID: m.GetId()}
	switch b := m.GetBody().(type) {
	case *pb.Response_TaskResult:
		r.Body = executor.TaskResult{Output: fromOutput(b.TaskResult)}
	case *pb.Response_Status:
		s := b.Status
		r.Body = executor.Status{
			Healthy: s.GetHealthy(), Active: s.GetActiveTasks(), Executed: s.GetTotalExecuted(), Successful: s.GetSuccessful(),
			Failed: s.GetFailed(), CacheHits: s.GetCacheHits(), Uptime: time.Duration(s.GetUptimeNs()),
			Queued: s.GetQueuedTasks(), Waited: time.Duration(s.GetWaitedNs()), Members: mapped(s.GetExecutors(), fromMember),
		}
	case *pb.Response_Pong:
		r.Body = executor.Pong{}
	case *pb.Response_Capabilities:
		c := b.Capabilities
		r.Body = executor.Capabilities{
			Sandboxing: c.GetSandboxing(), NetworkIsolation: c.GetNetworkIsolation(), Caching: c.GetCaching(),
			MaxParallel: int(c.GetMaxParallel()), Platforms: c.GetPlatforms(), Version: c.GetVersion(),
			Networks: c.GetNetworks(), Limits: c.GetLimits(), Missing: c.GetMissing(),
		}
	case *pb.Response_ShutdownAck:
		r.Body = executor.ShutdownAck{}
	case *pb.Response_Error:
		e := b.Error
		r.Body = &executor.Error{Kind: executor.Kind(e.GetKind()), Field: e.GetField(), Text: string(e.GetText())}
	case *pb.Response_TaskEvent:
		r.Body = executor.TaskEvent{Kind: executor.EventKind(b.TaskEvent.GetKind()), Data: b.TaskEvent.GetData(), Platform: b.TaskEvent.GetPlatform(), Text: b.TaskEvent.GetText()}
	default:
		r.Body = executor.Errorf(executor.Internal, "the answer has no known body; use the same version at both ends")
	}
	return r
}

func toMember(m executor.MemberStatus) *pb.MemberStatus {
	return &pb.MemberStatus{
		Name: text(m.Name), Healthy: m.Healthy, Fault: toBytes(m.Fault), Restarts: m.Restarts, MaxParallel: m.MaxParallel,
		ActiveTasks: m.Active, TotalExecuted: m.Executed, Successful: m.Successful, Failed: m.Failed, CacheHits: m.CacheHits,
		Platforms: texts(m.Platforms),
	}
}

func fromMember(m *pb.MemberStatus) executor.MemberStatus {
	return executor.MemberStatus{
		Name: m.GetName(), Healthy: m.GetHealthy(), Fault: string(m.GetFault()), Restarts: m.GetRestarts(), MaxParallel: m.GetMaxParallel(),
		Active: m.GetActiveTasks(), Executed: m.GetTotalExecuted(), Successful: m.GetSuccessful(), Failed: m.GetFailed(), CacheHits: m.GetCacheHits(),
		Platforms: m.GetPlatforms(),
	}
}

func toDigest(d executor.Digest) *pb.Digest {
	if d == (executor.Digest{}) {
		return nil
	}
	return &pb.Digest{Hash: text(d.Hash), Size: d.Size}
}

func fromDigest(m *pb.Digest) executor.Digest {
	return executor.Digest{Hash: m.GetHash(), Size: m.GetSize()}
}

func toStream(s executor.Stream) *pb.Stream {
	return &pb.Stream{Inline: s.Inline, Digest: toDigest(s.Digest), Truncated: s.Truncated}
}

func fromStream(m *pb.Stream) executor.Stream {
	return executor.Stream{Inline: m.GetInline(), Digest: fromDigest(m.GetDigest()), Truncated: m.GetTruncated()}
}

func toOutput(o *executor.TaskOutput) *pb.TaskOutput {
	if o == nil {
		return nil
	}
	m := &pb.TaskOutput{
		Signature: text(o.Signature), Stdout: toStream(o.Stdout), Stderr: toStream(o.Stderr),
		ExitCode: int64(o.ExitCode), Signal: int64(o.Signal), Cause: text(o.Cause), Evidence: toBytes(o.Evidence),
		DurationNs: int64(o.Duration), Cached: o.Cached, Platform: text(o.Platform),
		Usage: &pb.Usage{
			CpuUserNs: int64(o.Usage.CPUUser), CpuSystemNs: int64(o.Usage.CPUSystem), PeakMemoryBytes: o.Usage.PeakMemory,
			PeakPids: o.Usage.PeakPids, IoReadBytes: o.Usage.IORead, IoWriteBytes: o.Usage.IOWrite,
		},
		Applied:          &pb.Applied{Network: text(o.Applied.Network), Sandbox: texts(o.Applied.Sandbox)},
		UndeclaredWrites: mapped(o.UndeclaredWrites, toBytes[string]), UndeclaredTotal: o.UndeclaredTotal,
		MissingOutputs: mapped(o.MissingOutputs, toBytes[string]),
		DeniedConnections: mapped(o.DeniedConnections, func(d executor.DeniedConnection) *pb.DeniedConnection {
			return &pb.DeniedConnection{Protocol: text(d.Protocol), Address: text(d.Address), Port: int64(d.Port), Name: toBytes(d.Name), Count: d.Count, Rule: text(d.Rule)}
		}),
		DeniedTotal: o.DeniedTotal,
		NetworkTraffic: mapped(o.NetworkTraffic, func(r executor.RuleTraffic) *pb.RuleTraffic {
			return &pb.RuleTraffic{Rule: text(r.Rule), Connections: r.Connections, SentBytes: r.Sent, ReceivedBytes: r.Received}
		}),
		NeededAllow: mapped(o.NeededAllow, toBytes[string]),
		OutputFiles: mapped(o.OutputFiles, func(f executor.OutputFile) *pb.OutputFile {
			return &pb.OutputFile{Path: toBytes(f.Path), Kind: text(f.Kind), Digest: toDigest(f.Digest), Mode: f.Mode, Target: toBytes(f.Target)}
		}),
	}
	if len(o.Applied.Limits) > 0 {
		m.Applied.Limits = make(map[string]string, len(o.Applied.Limits))
	}
	for k, v := range o.Applied.Limits {
		m.Applied.Limits[text(k)] = text(v)
	}
	return m
}

func fromOutput(m *pb.TaskOutput) *executor.TaskOutput {
	if m == nil {
		m = &pb.TaskOutput{}
	}
	u, a := m.GetUsage(), m.GetApplied()
	if u == nil {
		u = &pb.Usage{}
	}
	return &executor.TaskOutput{
		Signature: executor.Signature(m.GetSignature()), Stdout: fromStream(m.GetStdout()), Stderr: fromStream(m.GetStderr()),
		ExitCode: int(m.GetExitCode()), Signal: int(m.GetSignal()), Cause: executor.Cause(m.GetCause()), Evidence: string(m.GetEvidence()),
		Duration: time.Duration(m.GetDurationNs()), Cached: m.GetCached(), Platform: m.GetPlatform(),
		Usage: executor.Usage{
			CPUUser: time.Duration(u.GetCpuUserNs()), CPUSystem: time.Duration(u.GetCpuSystemNs()), PeakMemory: u.PeakMemoryBytes,
			PeakPids: u.PeakPids, IORead: u.IoReadBytes, IOWrite: u.IoWriteBytes,
		},
		Applied:          executor.Applied{Network: a.GetNetwork(), Limits: a.GetLimits(), Sandbox: a.GetSandbox()},
		UndeclaredWrites: mapped(m.GetUndeclaredWrites(), toString[string]), UndeclaredTotal: m.GetUndeclaredTotal(),
		MissingOutputs: mapped(m.GetMissingOutputs(), toString[string]),
		DeniedConnections: mapped(m.GetDeniedConnections(), func(d *pb.DeniedConnection) executor.DeniedConnection {
			return executor.DeniedConnection{
				Protocol: d.GetProtocol(), Address: d.GetAddress(), Port: int(d.GetPort()), Name: string(d.GetName()), Count: d.GetCount(), Rule: d.GetRule(),
			}
		}),
		DeniedTotal: m.GetDeniedTotal(),
		NetworkTraffic: mapped(m.GetNetworkTraffic(), func(r *pb.RuleTraffic) executor.RuleTraffic {
			return executor.RuleTraffic{Rule: r.GetRule(), Connections: r.GetConnections(), Sent: r.GetSentBytes(), Received: r.GetReceivedBytes()}
		}),
		NeededAllow: mapped(m.GetNeededAllow(), toString[string]),
		OutputFiles: mapped(m.GetOutputFiles(), func(f *pb.OutputFile) executor.OutputFile {
			return executor.OutputFile{
				Path: string(f.GetPath()), Kind: executor.FileKind(f.GetKind()), Digest: fromDigest(f.GetDigest()), Mode: f.GetMode(), Target: string(f.GetTarget()),
			}
		}),
	}
}

const (
	// partBytes is where a TaskOutput is split into messages.
	partBytes = 1 << 20
	// maxResultBytes bounds a TaskOutput on the wire, all parts together.
	maxResultBytes = 64 << 20
)

// split gives the messages that make up m: one, or for a large TaskOutput its
// lists in parts and then the rest. What is too large even so becomes an error:
// every request is answered.
func split(m *pb.Response) []*pb.Response {
	size := proto.Size(m)
	if size <= partBytes {
		return []*pb.Response{m}
	}
	o := m.GetTaskResult()
	if o == nil && size <= maxMessage {
		return []*pb.Response{m}
	}
	if o == nil || size > maxResultBytes {
		return []*pb.Response{tooLarge(m.GetId(), size)}
	}
	parts := &partWriter{id: m.GetId()}
	for _, f := range o.OutputFiles {
		o := parts.part(proto.Size(f))
		o.OutputFiles = append(o.OutputFiles, f)
	}
	for _, p := range o.UndeclaredWrites {
		o := parts.part(len(p))
		o.UndeclaredWrites = append(o.UndeclaredWrites, p)
	}
	for _, p := range o.MissingOutputs {
		o := parts.part(len(p))
		o.MissingOutputs = append(o.MissingOutputs, p)
	}
	o.OutputFiles, o.UndeclaredWrites, o.MissingOutputs = nil, nil, nil
	all := append(parts.done, m)
	for _, p := range all {
		if n := proto.Size(p); n > maxMessage {
			return []*pb.Response{tooLarge(m.GetId(), n)}
		}
	}
	return all
}

type partWriter struct {
	id   uint64
	now  *pb.TaskOutput
	size int
	done []*pb.Response
}

// part is now, or a fresh one where now has no room for n more bytes.
func (w *partWriter) part(n int) *pb.TaskOutput {
	n += 16
	if w.now == nil || w.size+n > partBytes {
		w.now, w.size = &pb.TaskOutput{}, 0
		w.done = append(w.done, &pb.Response{Id: w.id, Body: &pb.Response_TaskResultPart{TaskResultPart: w.now}})
	}
	w.size += n
	return w.now
}

func tooLarge(id uint64, n int) *pb.Response {
	e := executor.FieldErrorf("outputs", "make an answer of %d bytes, which is too large; pack them into fewer files", n)
	return toResponse(executor.Response{ID: id, Body: e})
}
