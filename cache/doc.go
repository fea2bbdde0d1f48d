// Package cache keeps blobs by their digest, results by their action, and knows
// files it has hashed before. It knows nothing of tasks: a result is opaque bytes
// and the list of blobs without which it is worth nothing.
//
// Digests are those of the Remote Execution API with SHA-256, and so are the
// messages that Action, Directory and Cache.HashTree name, so that a result has
// the same name here, in a remote cache and on a cluster.
//
// # Use
//
//	tree, err := c.HashTree(ctx, dir, cache.TreeOptions{Exclude: outputs})
//	in, err := cache.Directory(map[string]cache.Node{"work": {Digest: tree.Digest, Dir: true}})
//	action, err := cache.Action(cache.Command{Argv: argv, Workdir: "work", Outputs: outputs}, in, timeout, nil)
//	record, _, err := c.Result(namespace, action) // namespace is the user's
//	if errors.Is(err, fs.ErrNotExist) {
//		// run, and for each output:
//		w, err := c.Create() // write to it, then:
//		blob, err := w.Commit()
//		// if the tree still has the same digest:
//		err = c.PutResult(namespace, action, record, blobs)
//	}
//
// Nothing evicts by itself: call GC now and then.
//
// # On disk
//
//	cas/ab/<hash>                           a blob
//	ac/<namespace>/ab/<hash>_<size>         a result, by the digest of its action
//	tmp/<random>/                           what one process is writing
//	index                                   the digests of files hashed before
//	lock, gc.lock, index.lock               flock(2), see below
//
// Directories have mode 0700, files 0600 or 0400. Whoever may write there can
// forge results: the directory must belong to the user that runs the cache.
//
// # What holds
//
//   - A blob or result has its name only when it is whole: it is written to tmp and
//     renamed, or adopted by one rename from where it lay (Cache.Adopt). A result has its name only when it, its blobs and their names are synced.
//   - A blob is hashed before it is handed out, by each process, and again when its
//     inode, size, mtime or ctime are no longer those of the last time. A wrong one is
//     removed and is then as absent as one that never was (ErrCorrupt is an
//     fs.ErrNotExist). So a blob that a crash damaged before it was synced does no harm.
//   - A blob's file has no other name, and nobody has it open for writing. Its descriptor (Blob.File) is for
//     this process, and must not reach a task.
//   - A result is handed out only if all its blobs are there and right.
//   - Eviction takes what was used longest ago, a result before its blobs, and nothing
//     that was written or used within the grace period (Config.Grace).
//   - Several processes may use one directory. Deletions hold lock exclusively,
//     whoever relies on a blob to stay holds it shared while looking and marking it
//     used. Where the system has no flock, one process may use a directory.
package cache
