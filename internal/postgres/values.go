package postgres

// AgentSetting is a parameter that is on in the agents' sessions. The event triggers
// that capture DDL fire in every session, those with session_replication_role = replica
// included, and by this one know Hawser's own. (Anybody may set it; it counts together
// with replica mode, which is a superuser's.)
const AgentSetting = "hawser.agent"

// ValueSettings give values in text one meaning on every server, whatever ALTER
// DATABASE or ALTER ROLE say there. Sessions whose values travel use them.
func ValueSettings() map[string]string {
	return map[string]string{
		"client_encoding":    "UTF8",
		"datestyle":          "ISO, YMD",
		"intervalstyle":      "postgres",
		"timezone":           "UTC",
		"extra_float_digits": "3",
		"bytea_output":       "hex",
		"lc_monetary":        "C",
		"xmloption":          "content",
	}
}
