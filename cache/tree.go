package cache

// maxDepth bounds how deep trees are.
const maxDepth = 512
