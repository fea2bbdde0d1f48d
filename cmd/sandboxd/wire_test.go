package main

import (
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	pb "github.com/sandboxd/sandboxd/executor/executorpb"
)

// onlyInJSON are keys of run --json that are not a field's name on the wire, with the
// field that they show: milliseconds for nanoseconds, and streams as text with the
// rest of what is known of them beside it.
var onlyInJSON = map[string]string{
	"duration_ms": "duration_ns", "usage.cpu_user_ms": "usage.cpu_user_ns", "usage.cpu_system_ms": "usage.cpu_system_ns",
	"stdout_base64": "stdout.inline", "stdout_truncated": "stdout.truncated",
	"stdout_digest.hash": "stdout.digest.hash", "stdout_digest.size": "stdout.digest.size",
	"stderr_base64": "stderr.inline", "stderr_truncated": "stderr.truncated",
	"stderr_digest.hash": "stderr.digest.hash", "stderr_digest.size": "stderr.digest.size",
	"stdout": "stdout.inline", "stderr": "stderr.inline",
}

// TestJSONHasTheNamesOfTheWire: what reads one of them can guess the other.
func TestJSONHasTheNamesOfTheWire(t *testing.T) {
	json, wire := map[string]bool{}, map[string]bool{}
	jsonKeys(json, "", reflect.TypeFor[taskJSON]())
	wireNames(wire, "", (&pb.TaskOutput{}).ProtoReflect().Descriptor())
	shown := map[string]bool{}
	for _, k := range slices.Sorted(maps.Keys(json)) {
		name := k
		if w, ok := onlyInJSON[k]; ok {
			name = w
		}
		if !wire[name] {
			t.Errorf("the key %s is no field of the wire", k)
		}
		shown[name] = true
	}
	for w := range wire {
		if !shown[w] {
			t.Errorf("the field %s of the wire is no key", w)
		}
	}
	for k := range onlyInJSON {
		if !json[k] {
			t.Errorf("there is no key %s", k)
		}
	}
}

// jsonKeys adds the keys of what is not a struct in t, with the keys that lead there.
func jsonKeys(keys map[string]bool, prefix string, t reflect.Type) {
	for t.Kind() == reflect.Slice || t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		keys[strings.TrimSuffix(prefix, ".")] = true
		return
	}
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous:
			jsonKeys(keys, prefix, f.Type)
		case name != "-":
			jsonKeys(keys, prefix+name+".", f.Type)
		}
	}
}

func wireNames(names map[string]bool, prefix string, d protoreflect.MessageDescriptor) {
	for i := range d.Fields().Len() {
		f := d.Fields().Get(i)
		if name := prefix + string(f.Name()); f.Message() == nil || f.IsMap() {
			names[name] = true
		} else {
			wireNames(names, name+".", f.Message())
		}
	}
}
