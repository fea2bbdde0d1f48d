// Package limits makes the control groups tasks run in, and measures, kills and removes them.
//
// Where the groups go, when Config.Parent is empty:
//
//   - v1 and hybrid: /sandboxd in each hierarchy.
//   - v2, the daemon's own group is "/": /sandboxd.
//   - v2, own group is delegated to the daemon: the daemon moves itself to <own>/daemon, tasks go below <own>/tasks.
//     Delegated means the directory has the xattr user.delegate or trusted.delegate set to 1 (systemd's Delegate=yes),
//     or the daemon is the only process in it.
//   - v2, otherwise: /sandboxd for root, an error for anybody else.
//
// With Config.Owner the groups are in one of that name there. What a dead Manager of the same Owner left in it, or in
// that below another parent that is on record, is killed and removed by Open.
//
// Controllers are enabled only in groups named above as the daemon's, never in one above them.
package limits
