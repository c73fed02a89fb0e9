package apply

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// Settings are those of the session that Connect has to give an applier. Plans are
// pinned by them: a key is looked up by its index whatever the statistics of a table
// that was just filled may say.
func Settings() map[string]string {
	return map[string]string{
		"synchronous_commit":              "off",
		"plan_cache_mode":                 "force_generic_plan",
		"enable_seqscan":                  "off",
		"enable_bitmapscan":               "off",
		"enable_memoize":                  "off", // a row is looked up once
		"jit":                             "off",
		"max_parallel_workers_per_gather": "0",
		"default_transaction_isolation":   "read committed",
	}
}

// freePlans lets the planner choose within the open transaction, as commands need it
// that read whole tables, and pins it again.
func freePlans(ctx context.Context, conn *pgx.Conn, free bool) error {
	value := "off"
	if free {
		value = "on"
	}
	_, err := conn.Exec(ctx, `SELECT set_config('enable_seqscan', $1, true), set_config('enable_bitmapscan', $1, true)`, value)
	if err != nil {
		return fmt.Errorf("set what the planner may choose: %w", err)
	}
	return nil
}
