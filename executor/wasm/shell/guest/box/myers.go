package box

import "slices"

// edit says that the lines a0 to a1 of one file become b0 to b1 of the other.
type edit struct{ a0, a1, b0, b1 int }

// maxSteps bounds what comparing two files may take, which grows with the square of how
// much they differ. Beyond it, all from the first to the last difference is one change.
const maxSteps = 1 << 22

// difference finds the shortest list of edits, by the algorithm of Myers. Equal lines at
// either end are set aside first.
func difference(a, b []string) []edit {
	start := 0
	for start < len(a) && start < len(b) && a[start] == b[start] {
		start++
	}
	endA, endB := len(a), len(b)
	for endA > start && endB > start && a[endA-1] == b[endB-1] {
		endA--
		endB--
	}
	changedA, changedB := make([]bool, len(a)), make([]bool, len(b))
	trace(a[start:endA], b[start:endB], changedA[start:endA], changedB[start:endB])
	var edits []edit
	i, j := 0, 0
	for i < len(a) || j < len(b) {
		if i < len(a) && j < len(b) && !changedA[i] && !changedB[j] {
			i++
			j++
			continue
		}
		e := edit{a0: i, b0: j}
		for i < len(a) && changedA[i] {
			i++
		}
		for j < len(b) && changedB[j] {
			j++
		}
		e.a1, e.b1 = i, j
		edits = append(edits, e)
	}
	return settle(a, b, edits)
}

// trace marks the lines of a that go and those of b that come.
func trace(a, b []string, gone, come []bool) {
	n, m := len(a), len(b)
	most := n + m
	v := make([]int, 2*most+2)
	var steps [][]int
	total := 0
	for d := 0; d <= most; d++ {
		if total += d; total > maxSteps {
			for i := range gone {
				gone[i] = true
			}
			for i := range come {
				come[i] = true
			}
			return
		}
		snapshot := make([]int, 2*d+1)
		for k := -d; k <= d; k += 2 {
			var x int
			if k == -d || k != d && v[most+k-1] < v[most+k+1] {
				x = v[most+k+1]
			} else {
				x = v[most+k-1] + 1
			}
			for x < n && x-k < m && a[x] == b[x-k] {
				x++
			}
			v[most+k] = x
			snapshot[k+d] = x
			if x >= n && x-k >= m {
				steps = append(steps, snapshot)
				walkBack(steps, n, m, gone, come)
				return
			}
		}
		steps = append(steps, snapshot)
	}
}

func walkBack(steps [][]int, x, y int, gone, come []bool) {
	for d := len(steps) - 1; d > 0; d-- {
		k := x - y
		prev := steps[d-1]
		at := func(k int) int {
			if k < -(d-1) || k > d-1 {
				return -1
			}
			return prev[k+d-1]
		}
		down := k == -d || k != d && at(k-1) < at(k+1)
		if down {
			x = at(k + 1)
			y = x - (k + 1)
			come[y] = true
		} else {
			x = at(k - 1)
			y = x - (k - 1)
			gone[x] = true
		}
	}
}

// settle moves each edit that only adds or only removes as far down as equal lines let
// it, so that it stands behind what it repeats, and joins edits that come to touch.
func settle(a, b []string, edits []edit) []edit {
	for i := len(edits) - 1; i >= 0; i-- {
		e := &edits[i]
		endA, endB := len(a), len(b)
		if i+1 < len(edits) {
			endA, endB = edits[i+1].a0, edits[i+1].b0
		}
		for e.a1 < endA && e.b1 < endB && (e.b0 == e.b1 && a[e.a0] == a[e.a1] || e.a0 == e.a1 && b[e.b0] == b[e.b1]) {
			e.move(1)
		}
		if i+1 < len(edits) && e.a1 == endA && e.b1 == endB {
			edits = join(edits, i)
		}
	}
	for i := len(edits) - 1; i > 0; i-- {
		up, above := edits[i], edits[i-1]
		for up.a0 > above.a1 && up.b0 > above.b1 && (up.b0 == up.b1 && a[up.a0-1] == a[up.a1-1] || up.a0 == up.a1 && b[up.b0-1] == b[up.b1-1]) {
			up.move(-1)
		}
		if up.a0 == above.a1 && up.b0 == above.b1 {
			edits[i] = up
			edits = join(edits, i-1)
		}
	}
	return edits
}

func (e *edit) move(n int) {
	e.a0 += n
	e.a1 += n
	e.b0 += n
	e.b1 += n
}

// join makes one edit of two that touch.
func join(edits []edit, i int) []edit {
	edits[i].a1, edits[i].b1 = edits[i+1].a1, edits[i+1].b1
	return slices.Delete(edits, i+1, i+2)
}
