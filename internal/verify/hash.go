package verify

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/big"
)

// Hash is the sum of the hashes of rows, each half modulo 2^64. Zero is no rows.
type Hash struct{ A, B uint64 }

// Add returns the hash of two disjoint sets of rows together.
func (h Hash) Add(o Hash) Hash { return Hash{h.A + o.A, h.B + o.B} }

func (h Hash) bytes() []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, h.A), h.B)
}

// String is 32 hexadecimal digits.
func (h Hash) String() string { return hex.EncodeToString(h.bytes()) }

// MarshalText writes 32 hexadecimal digits.
func (h Hash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (h *Hash) UnmarshalText(text []byte) error {
	b, err := hex.DecodeString(string(text))
	if err != nil || len(b) != 16 {
		return fmt.Errorf("hash %.40q: want 32 hexadecimal digits", text)
	}
	h.A, h.B = binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])
	return nil
}

// parseSums reads two sums of signed 64-bit numbers, which may be longer than 64 bits.
func parseSums(a, b string) (Hash, error) {
	x, err := modulo(a)
	if err != nil {
		return Hash{}, err
	}
	y, err := modulo(b)
	return Hash{x, y}, err
}

func modulo(s string) (uint64, error) {
	n, ok := new(big.Int).SetString(s, 10)
	if !ok {
		return 0, fmt.Errorf("sum %.40q is no number", s)
	}
	return n.And(n, new(big.Int).SetUint64(1<<64-1)).Uint64(), nil
}
