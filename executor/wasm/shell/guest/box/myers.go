package box

import "errors"

// edit says that the lines a0 to a1 of one file become b0 to b1 of the other.
type edit struct{ a0, a1, b0, b1 int }

// maxDifference bounds what comparing two files may take: it grows with the square.
const maxDifference = 20000

var errDifferent = errors.New("the files differ too much to be compared line by line")

// difference finds the shortest list of edits, by the algorithm of Myers. Equal lines at
// either end are set aside first.
func difference(a, b []string) ([]edit, error) {
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
	if err := trace(a[start:endA], b[start:endB], changedA[start:], changedB[start:]); err != nil {
		return nil, err
	}
	slide(a, changedA, changedB)
	slide(b, changedB, changedA)
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
	return edits, nil
}

// trace marks the lines of a that go and those of b that come.
func trace(a, b []string, gone, come []bool) error {
	n, m := len(a), len(b)
	most := n + m
	v := make([]int, 2*most+2)
	var steps [][]int
	total := 0
	for d := 0; d <= most; d++ {
		if total += d; d > maxDifference || total > 1<<25 {
			return errDifferent
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
				return nil
			}
		}
		steps = append(steps, snapshot)
	}
	return nil
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

// slide moves each run of changed lines as far down as equal lines let it, which joins runs and
// puts a change behind what it repeats, as GNU's diff shows it; or up to a change of the other file.
func slide(lines []string, changed, other []bool) {
	i, j := 0, 0
	for {
		for i < len(lines) && !changed[i] {
			for j < len(other) && other[j] {
				j++
			}
			i++
			j++
		}
		if i >= len(lines) {
			return
		}
		start := i
		for i < len(lines) && changed[i] {
			i++
		}
		for j < len(other) && other[j] {
			j++
		}
		for {
			length := i - start
			// Up, to join a run that ends above.
			for start > 0 && lines[start-1] == lines[i-1] && !changed[start-1] {
				start--
				i--
				changed[start], changed[i] = true, false
				for start > 0 && changed[start-1] {
					start--
				}
				j--
				for j > 0 && other[j-1] {
					j--
				}
			}
			corresponding := len(lines)
			if j > 0 && other[j-1] {
				corresponding = i
			}
			// Down.
			for i < len(lines) && lines[start] == lines[i] {
				changed[start], changed[i] = false, true
				start++
				i++
				for i < len(lines) && changed[i] {
					i++
				}
				j++
				for j < len(other) && other[j] {
					j++
					corresponding = i
				}
			}
			if length == i-start {
				// Back up to where the other file changed too.
				for corresponding < i {
					start--
					i--
					changed[start], changed[i] = true, false
					j--
					for j > 0 && other[j-1] {
						j--
					}
				}
				break
			}
		}
	}
}
