package apply

// Values are kept in blocks, each twice as large as the one before: a thousand tables
// with a few changes each take little. A value that is larger than the largest has one of
// its own.
const leastBlock, mostBlock = 1 << 10, 64 << 10

// place is where a value's bytes are. It is no pointer: the garbage collector would look
// at the values of a hundred thousand held rows one by one, again and again.
type place struct {
	block, from uint32
	size        int32 // -1: NULL
}

// values keeps the values of held rows.
type values struct {
	places []place
	blocks [][]byte
}

func (v *values) len() int    { return len(v.places) }
func (v *values) add(p place) { v.places = append(v.places, p) }

// keep copies a value, and does not add it.
func (v *values) keep(data []byte) place {
	if n := len(v.blocks); n == 0 || cap(v.blocks[n-1])-len(v.blocks[n-1]) < len(data) {
		size := leastBlock
		if n > 0 {
			size = min(2*cap(v.blocks[n-1]), mostBlock)
		}
		v.blocks = append(v.blocks, make([]byte, 0, max(size, len(data))))
	}
	last := &v.blocks[len(v.blocks)-1]
	p := place{block: uint32(len(v.blocks) - 1), from: uint32(len(*last)), size: int32(len(data))}
	*last = append(*last, data...)
	return p
}

// at is the value that was added as the i-th: nil for NULL, and not nil for an empty one.
func (v *values) at(i int) []byte {
	p := v.places[i]
	if p.size < 0 {
		return nil
	}
	from, to := int(p.from), int(p.from)+int(p.size)
	return v.blocks[p.block][from:to:to]
}

// emptied is for other values: it keeps the places' memory, and no bytes.
func (v *values) emptied() values { return values{places: v.places[:0]} }
