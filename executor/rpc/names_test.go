package rpc

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/sandboxd/sandboxd/executor"
	pb "github.com/sandboxd/sandboxd/executor/executorpb"
)

// TestFieldsHaveTheNamesOfTheJSON: what executor.proto says of names, both ways.
func TestFieldsHaveTheNamesOfTheJSON(t *testing.T) {
	for _, c := range []struct {
		v any
		m proto.Message
	}{
		{executor.TaskSpec{}, &pb.TaskSpec{}}, {executor.Input{}, &pb.Input{}}, {executor.ResourceLimits{}, &pb.ResourceLimits{}},
		{executor.TaskOutput{}, &pb.TaskOutput{}}, {executor.OutputFile{}, &pb.OutputFile{}}, {executor.Stream{}, &pb.Stream{}},
		{executor.Digest{}, &pb.Digest{}}, {executor.Usage{}, &pb.Usage{}}, {executor.Applied{}, &pb.Applied{}},
		{executor.Status{}, &pb.Status{}}, {executor.Capabilities{}, &pb.Capabilities{}},
	} {
		names := map[string]bool{}
		for _, f := range reflect.VisibleFields(reflect.TypeOf(c.v)) {
			names[wireName(f)] = true
		}
		d := c.m.ProtoReflect().Descriptor()
		for i := range d.Fields().Len() {
			if n := string(d.Fields().Get(i).Name()); !names[n] {
				t.Errorf("%s is no name in the JSON of %T", d.Fields().Get(i).FullName(), c.v)
			}
			delete(names, string(d.Fields().Get(i).Name()))
		}
		for n := range names {
			t.Errorf("%s has no %s, as the JSON of %T has", d.FullName(), n, c.v)
		}
	}
}

// wireName is what a field is called on the wire: as in JSON, but durations, which
// are nanoseconds there and say so.
func wireName(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	if f.Type != reflect.TypeFor[time.Duration]() {
		return name
	}
	if name == "-" { // it is shown in another unit
		name = snake(f.Name)
	}
	return name + "_ns"
}

// snake is a Go name in snake case.
func snake(s string) string {
	var b strings.Builder
	for i, r := range s {
		up := r >= 'A' && r <= 'Z'
		if before := i > 0 && s[i-1] >= 'a'; up && before || up && i > 0 && i+1 < len(s) && s[i+1] >= 'a' {
			b.WriteByte('_')
		}
		b.WriteString(strings.ToLower(string(r)))
	}
	return b.String()
}

// TestNumbersAreNeverUsedTwice: the numbers that were given stay as they are. A new
// field is added here; one that goes is reserved in executor.proto.
func TestNumbersAreNeverUsedTwice(t *testing.T) {
	for m, want := range map[proto.Message]string{
		&pb.TaskSpec{}: "name recipe script argv stdin workdir workdir_mode env outputs inputs dep_signatures rootfs timeout_ns network limits debug cache",
		&pb.TaskOutput{}: "signature output_files stdout stderr exit_code signal cause evidence duration_ns cached usage applied " +
			"undeclared_writes undeclared_total missing_outputs",
		&pb.Request{}:  "id execute_task cancel_task get_status ping get_capabilities shutdown events_taken",
		&pb.Response{}: "id task_result status pong capabilities shutdown_ack error task_event task_result_part",
	} {
		d := m.ProtoReflect().Descriptor()
		for i, name := range strings.Fields(want) {
			if f := d.Fields().ByNumber(protoreflect.FieldNumber(i + 1)); f == nil || string(f.Name()) != name {
				t.Errorf("field %d of %s is %v; it was %s", i+1, d.FullName(), f, name)
			}
		}
	}
}
