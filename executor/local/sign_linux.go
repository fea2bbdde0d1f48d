package local

import (
	"context"

	"github.com/sandboxd/sandboxd/executor/internal/action"
	"github.com/sandboxd/sandboxd/sandbox"
)

// sign signs a task with its open paths, which are read with the caller's rights.
func (t *task) sign(ctx context.Context) (action.Signature, error) {
	return action.Sign(ctx, t.cfg.Cache, t.spec, environment(t.spec.Env), t.paths.Files(), action.Ground{Platform: executor.PlatformNative, Root: t.root.Identity()})
}

// environment is what a task's processes see.
func environment(env map[string]string) map[string]string {
	return action.Environment(sandbox.DefaultPath, sandbox.HomeDir, env)
}
