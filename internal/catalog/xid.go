package catalog

import (
	"fmt"
	"strconv"
)

// xid8 has no binary form that pgx knows on PostgreSQL 14; decimal text serves.

func formatXIDs(xids []uint64) []string {
	out := make([]string, len(xids))
	for i, x := range xids {
		out[i] = strconv.FormatUint(x, 10)
	}
	return out
}

func parseXIDs(texts []string) ([]uint64, error) {
	out := make([]uint64, len(texts))
	for i, t := range texts {
		x, err := strconv.ParseUint(t, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("transaction id %q in the catalog: %w", t, err)
		}
		out[i] = x
	}
	return out, nil
}
