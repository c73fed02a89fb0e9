package postgres

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
